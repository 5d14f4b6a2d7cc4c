//! Tensors as the header lists them: where their bytes are, not what they hold.

use crate::Error;
use crate::read::Reader;

/// What a tensor's name may take: the loader keeps it in a field of 64 bytes that ends with a zero.
pub(crate) const NAME_BYTES_MAX: usize = 63;
const DIMENSIONS_MAX: u32 = 4;

/// How numbers are packed. The numbers, names and block sizes are ggml's (`ggml.h`, `ggml-common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorType {
    number: u32,
    name: &'static str,
    block: u64,
    block_bytes: u64,
}

/// Holes are types that were removed.
const TYPES: [(u32, &str, u64, u64); 35] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    name: &'a str,
    shape: [u64; DIMENSIONS_MAX as usize],
    dimensions: usize,
    kind: TensorType,
    /// From the beginning of the data, not of the file.
    offset: u64,
    elements: u64,
    bytes: u64,
}

impl TensorType {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        let known = TYPES.iter().find(|(known, ..)| *known == number);
        known.map(|&(number, name, block, block_bytes)| Self { number, name, block, block_bytes })
    }

    /// As ggml numbers it.
    pub const fn number(&self) -> u32 {
        self.number
    }

    pub const fn name(&self) -> &'static str {
        self.name
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(crate) const fn bytes_of(&self, elements: u64) -> u64 {
        elements / self.block * self.block_bytes
    }
}

impl<'a> Tensor<'a> {
    /// `index` is for the error's text.
    pub(crate) fn read(reader: &mut Reader<'a>, index: u64) -> Result<Self, Error> {
        let name = reader.string()?;
        let name = (name.len() <= NAME_BYTES_MAX).then(|| std::str::from_utf8(name).ok()).flatten();
        let name = name.ok_or(Error::Name { what: "tensor", index, max: NAME_BYTES_MAX })?;
        let wrong = |why| Error::Shape { tensor: name.to_owned(), why };

        let dimensions = reader.u32()?;
        if dimensions > DIMENSIONS_MAX {
            return Err(wrong("more than 4 dimensions"));
        }
        let dimensions = dimensions as usize;
        let mut shape = [1; DIMENSIONS_MAX as usize];
        for side in &mut shape[..dimensions] {
            *side = reader.u64()?;
        }
        let number = reader.u32()?;
        let kind = TensorType::from_number(number)
            .ok_or_else(|| Error::TensorType { tensor: name.to_owned(), kind: number })?;
        let offset = reader.u64()?;

        // The loader counts in signed numbers.
        let whole = |product: &u64| i64::try_from(*product).is_ok();
        let elements = shape.iter().try_fold(1u64, |product, side| product.checked_mul(*side).filter(whole));
        let elements = elements.filter(|_| shape.iter().all(whole)).ok_or_else(|| wrong("too many elements"))?;
        if !shape[0].is_multiple_of(kind.block) {
            return Err(wrong("rows that are no whole number of blocks"));
        }
        let bytes = (elements / kind.block).checked_mul(kind.block_bytes).filter(whole);
        let bytes = bytes.ok_or_else(|| wrong("too many bytes"))?;
        Ok(Self { name, shape, dimensions, kind, offset, elements, bytes })
    }

    pub const fn name(&self) -> &'a str {
        self.name
    }

    /// Rows first, as the file has it.
    pub fn shape(&self) -> &[u64] {
        &self.shape[..self.dimensions]
    }

    pub const fn kind(&self) -> TensorType {
        self.kind
    }

    pub const fn offset(&self) -> u64 {
        self.offset
    }

    pub const fn elements(&self) -> u64 {
        self.elements
    }

    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_one_number_and_one_name() {
        for (at, (number, name, block, bytes)) in TYPES.iter().enumerate() {
            assert!(TYPES[..at].iter().all(|(lower, other, ..)| lower < number && other != name), "{name}");
            assert!(*block > 0 && *bytes > 0, "{name}");
            assert_eq!(TensorType::from_number(*number).map(|kind| kind.name()), Some(*name));
        }
        assert_eq!(TensorType::from_number(4), None);
        assert_eq!(TensorType::from_number(43), None);
    }
}
