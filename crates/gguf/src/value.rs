//! Metadata values. They borrow the header's bytes: a vocabulary of a million pieces costs nothing until it is walked.

use crate::Error;
use crate::read::Reader;

/// The type of a value, or of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

/// How many bytes a value takes.
enum Width {
    Fixed(u64),
    Prefixed,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Not always UTF-8.
    String(&'a [u8]),
    Array(Array<'a>),
}

/// Its bytes were walked once, so that every element is known to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Array<'a> {
    kind: Kind,
    count: u64,
    bytes: &'a [u8],
}

/// What stands before a value; arrays say more.
const ARRAY: u32 = 9;

impl Kind {
    const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    const fn width(self) -> Width {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Width::Fixed(1),
            Self::U16 | Self::I16 => Width::Fixed(2),
            Self::U32 | Self::I32 | Self::F32 => Width::Fixed(4),
            Self::U64 | Self::I64 | Self::F64 => Width::Fixed(8),
            Self::String => Width::Prefixed,
        }
    }
}

impl<'a> Value<'a> {
    /// `key` is for the error's text.
    pub(crate) fn read(reader: &mut Reader<'a>, key: &str) -> Result<Self, Error> {
        let number = reader.u32()?;
        let unknown = |kind: u32| Error::Kind { key: key.to_owned(), kind };
        if number == ARRAY {
            return match reader.u32()? {
                ARRAY => Err(Error::Nested(key.to_owned())),
                inner => Ok(Self::Array(Array::read(reader, Kind::from_number(inner).ok_or_else(|| unknown(inner))?)?)),
            };
        }
        Self::read_scalar(reader, Kind::from_number(number).ok_or_else(|| unknown(number))?)
    }

    fn read_scalar(reader: &mut Reader<'a>, kind: Kind) -> Result<Self, Error> {
        let bytes = match kind.width() {
            Width::Fixed(width) => reader.take(width)?,
            Width::Prefixed => return reader.string().map(Self::String),
        };
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        let raw = u64::from_le_bytes(padded);
        Ok(match kind {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Self::Unsigned(raw),
            // Sign extension is what these casts are for.
            Kind::I8 => Self::Signed(i64::from(raw as u8 as i8)),
            Kind::I16 => Self::Signed(i64::from(raw as u16 as i16)),
            Kind::I32 => Self::Signed(i64::from(raw as u32 as i32)),
            Kind::I64 => Self::Signed(raw as i64),
            Kind::F32 => Self::Float(f64::from(f32::from_bits(raw as u32))),
            Kind::F64 => Self::Float(f64::from_bits(raw)),
            Kind::Bool => Self::Bool(raw != 0),
            Kind::String => unreachable!("strings have no fixed width"),
        })
    }

    /// A whole number that is not negative, whatever its width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(number) => Some(number),
            Self::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(truth) => Some(truth),
            _ => None,
        }
    }

    /// `None` where it is no string, or one that is not UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Self::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub fn as_array(&self) -> Option<&Array<'a>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    fn read(reader: &mut Reader<'a>, kind: Kind) -> Result<Self, Error> {
        let count = reader.u64()?;
        let bytes = match kind.width() {
            // A product beyond 64 bits asks for more than any file has, as does the largest number.
            Width::Fixed(width) => reader.take(count.saturating_mul(width))?,
            Width::Prefixed => {
                // Ends with the bytes, whatever the count is: each string takes eight of them or more.
                let mut walker = reader.clone();
                for _ in 0..count {
                    walker.string()?;
                }
                reader.take((walker.position() - reader.position()) as u64)?
            }
        };
        Ok(Self { kind, count, bytes })
    }

    pub const fn kind(&self) -> Kind {
        self.kind
    }

    pub const fn len(&self) -> u64 {
        self.count
    }

    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut reader) = (self.kind, Reader::new(self.bytes, true));
        (0..self.count)
            .map(move |_| Value::read_scalar(&mut reader, kind).expect("the array was walked when it was read"))
    }

    /// At once where elements have one width, by walking where they are strings.
    pub fn get(&self, index: u64) -> Option<Value<'a>> {
        if index >= self.count {
            return None;
        }
        match self.kind.width() {
            Width::Prefixed => self.iter().nth(usize::try_from(index).ok()?),
            Width::Fixed(width) => {
                let mut reader = Reader::new(self.bytes, true);
                reader.take(index * width).ok()?;
                Value::read_scalar(&mut reader, self.kind).ok()
            }
        }
    }
}
