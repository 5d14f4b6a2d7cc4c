//! The power goes at a random moment: of what was written since a file's last completed sync, any sectors may have made
//! it and any may not, and removed files may be back. What was acknowledged has to be there, and the store has to open by itself.
//! In some lives the process is killed before that, so that the opening, which the power cut then comes into, reads from the
//! page cache what never reached the disk.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use super::rig::{Dice, Small, append, copy_dir, records, wait};
use crate::{
    Bounds, Config, Error, Log, Meta, Record, Worker,
    disk::{Disk, Os},
};

/// What a disk writes in full or not at all: a sector as we ask of it, a page as sled does.
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;

/// Small, so that a life fills many.
const SEGMENT_BYTES: u64 = 48 << 10;

const LIVES: u64 = 8;
const STEPS: u64 = 120;

/// Times the process is killed in a life in which it is.
const KILLS: u64 = 4;

/// One in so many of the moments looked at the power goes: in a life, and while a store is opened behind a kill.
const CUT_ODDS: u64 = 18;
const CUT_ODDS_OPENING: u64 = 3;
const NO_CUTS: u64 = u64::MAX;

/// One thing the client asked for.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Record>),
    Vote(Vec<u8>),
    Truncate(Option<u64>),
    Purge(u64),
}

/// What must be in the store after the acknowledged steps.
#[derive(Debug, Clone, Default)]
struct Model {
    records: BTreeMap<u64, Record>,
    purged: Option<u64>,
    vote: Option<Vec<u8>>,
}

impl Model {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Append(records) => self.records.extend(records.into_iter().map(|record| (record.index, record))),
            Step::Vote(vote) => self.vote = Some(vote),
            Step::Truncate(after) => self.records.retain(|index, _| Some(*index) <= after),
            Step::Purge(to) => {
                self.records.retain(|index, _| *index > to);
                self.purged = Some(to);
            }
        }
    }

    fn records(&self) -> Vec<Record> {
        self.records.values().cloned().collect()
    }
}

/// What the client was told, and what it still waits for.
#[derive(Debug, Clone, Default)]
struct Told {
    acknowledged: Model,
    pending: VecDeque<Step>,
}

impl Told {
    /// Whether a store may hold this. Of what was not acknowledged appends may be there up to any record, the rest in full
    /// or not at all, a truncation or a purge done in part too where that shows whole records only.
    fn allows(&self, found: &[Record], vote: &Option<Vec<u8>>) -> bool {
        let mut model = self.acknowledged.clone();
        let before = model.records();
        match self.pending.front().cloned() {
            Some(Step::Append(_)) | None => {
                let pending = self.pending.iter().flat_map(|step| match step {
                    Step::Append(records) => records.clone(),
                    other => panic!("{other:?} was to be asked for alone"),
                });
                let all = [before, pending.collect()].concat();
                all.starts_with(found) && found.len() >= model.records.len() && *vote == model.vote
            }
            Some(Step::Vote(new)) => found == before && (*vote == model.vote || *vote == Some(new)),
            Some(step @ Step::Truncate(_)) => {
                model.apply(step);
                before.starts_with(found) && found.starts_with(&model.records()) && *vote == model.vote
            }
            Some(step @ Step::Purge(_)) => {
                model.apply(step);
                (found == before || found == model.records()) && *vote == model.vote
            }
        }
    }
}

/// The moment of a cut: the disk as it may be found, and what had been promised.
struct Cut {
    dir: PathBuf,
    told: Told,
}

/// Knows what each file held when its last sync began, and cuts the power at moments it rolls.
struct Fragile {
    live: PathBuf,
    images: PathBuf,
    state: Mutex<State>,
    told: Arc<Mutex<Told>>,
    /// Something other than the mark was synced.
    other: Condvar,
}

struct State {
    dice: Dice,
    synced: BTreeMap<PathBuf, Vec<u8>>,
    /// Another thread writes the mark, so its file may not be looked at whenever the power goes.
    mark: Vec<u8>,
    cuts: Vec<Cut>,
    /// How often something other than the mark was synced.
    others: u64,
    cut_odds: u64,
    process: Process,
}

#[derive(Clone, Copy, PartialEq)]
enum Process {
    Safe,
    /// To be killed at one of the next syncs.
    Mortal,
    /// What it wrote is in the page cache, and no sync of it ends.
    Killed,
}

impl State {
    /// A segment is synced as a draft before it gets its name. To be asked before the next draft is.
    fn note_named_drafts(&mut self, segments: &Path) {
        for path in fs::read_dir(segments).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if !self.synced.contains_key(&path)
                && let Some(draft) = self.synced.get(&path.with_file_name("next")).cloned()
            {
                self.synced.insert(path, draft);
            }
        }
    }
}

impl Fragile {
    fn new(dir: &Path, seed: u64) -> Arc<Fragile> {
        let state = State {
            dice: Dice::from(seed),
            synced: BTreeMap::new(),
            mark: Vec::new(),
            cuts: Vec::new(),
            others: 0,
            cut_odds: CUT_ODDS,
            process: Process::Safe,
        };
        Arc::new(Fragile {
            live: dir.join("live"),
            images: dir.join("images"),
            state: Mutex::new(state),
            told: Arc::default(),
            other: Condvar::new(),
        })
    }

    fn open(self: &Arc<Self>) -> (Log, Worker) {
        Log::open_on(Config { reserve: 0, cache: 4096, ..Config::new(&self.live) }, self.clone()).unwrap()
    }

    fn set(&self, process: Process, cut_odds: u64) {
        let mut state = self.state.lock().unwrap();
        (state.process, state.cut_odds) = (process, cut_odds);
    }

    /// Returns how many there were.
    fn check_cuts(&self, name: &str) -> usize {
        let taken = std::mem::take(&mut self.state.lock().unwrap().cuts);
        for (number, cut) in taken.iter().enumerate() {
            check(cut, &format!("{name}, cut {number}"));
        }
        taken.len()
    }

    fn maybe_cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.note_named_drafts(&self.live.join("segments"));
        let odds = state.cut_odds;
        if state.dice.below(odds) != 0 {
            return;
        }
        let dir = self.images.join(state.cuts.len().to_string());
        copy_dir(&self.live, &dir);
        let State { dice, synced, mark, .. } = &mut *state;
        for (path, synced) in synced {
            let file = dir.join(path.strip_prefix(&self.live).unwrap());
            let grain = if path.ends_with("sled/db") { PAGE_BYTES } else { SECTOR_BYTES };
            match if is_mark(path) { Ok(mark.clone()) } else { fs::read(path) } {
                Ok(now) => fs::write(file, blend(synced, &now, grain, dice)).unwrap(),
                Err(_) if dice.below(4) == 0 => fs::write(file, synced).unwrap(),
                Err(_) => {}
            }
        }
        let told = self.told.lock().unwrap().clone();
        state.cuts.push(Cut { dir, told });
    }
}

impl Fragile {
    /// Every other time when a purge or a truncation is on its way: those change most before the next sync.
    fn survive(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.process == Process::Mortal {
            let removing =
                matches!(self.told.lock().unwrap().pending.front(), Some(Step::Purge(_) | Step::Truncate(_)));
            if state.dice.below(if removing { 2 } else { 60 }) == 0 {
                state.process = Process::Killed;
            }
        }
        if state.process == Process::Killed { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

fn is_mark(path: &Path) -> bool {
    path.ends_with("mark")
}

impl Disk for Fragile {
    /// The mark is as often durable before what is written beside it as it is after that, where anything is. The power
    /// goes while the log's own thread is here, so that nothing but the mark changes meanwhile.
    fn sync(&self, _file: &File, path: &Path) -> io::Result<()> {
        self.survive()?;
        if is_mark(path) {
            let mut state = self.state.lock().unwrap();
            let (late, others) = (state.dice.below(2) == 0, state.others);
            if late {
                let alone = Duration::from_millis(2);
                state = self.other.wait_timeout_while(state, alone, |state| state.others == others).unwrap().0;
            }
            let now = state.mark.clone();
            state.synced.insert(path.into(), now);
            return Ok(());
        }
        let now = fs::read(path)?;
        self.maybe_cut();
        {
            let mut state = self.state.lock().unwrap();
            state.synced.insert(path.into(), now);
            state.others += 1;
        }
        self.maybe_cut();
        self.other.notify_all();
        Ok(())
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        Os.free(dir)
    }

    fn wrote(&self, path: &Path, _last: Option<u64>) {
        if is_mark(path) {
            self.state.lock().unwrap().mark = fs::read(path).unwrap();
        } else {
            self.maybe_cut();
        }
    }
}

/// Each piece from before or from now; how many from now differs from cut to cut. A file reaches as far as a piece that
/// made it.
fn blend(before: &[u8], now: &[u8], grain: usize, dice: &mut Dice) -> Vec<u8> {
    let odds = dice.below(5);
    let mut image = before.to_vec();
    for (piece, fresh) in now.chunks(grain).enumerate() {
        let at = piece * grain;
        if before.get(at..at + fresh.len()) != Some(fresh) && dice.below(4) < odds {
            image.resize(image.len().max(at + fresh.len()), 0);
            image[at..at + fresh.len()].copy_from_slice(fresh);
        }
    }
    image
}

/// A client that keeps appends in flight, and now and then votes, truncates or purges. It ends early with the process.
fn live(log: &Log, told: &Arc<Mutex<Told>>, dice: &mut Dice) {
    let submit = |step: &Step| told.lock().unwrap().pending.push_back(step.clone());
    let acknowledge = |told: &Mutex<Told>| {
        let mut told = told.lock().unwrap();
        let step = told.pending.pop_front().unwrap();
        told.acknowledged.apply(step);
    };
    let (sender, acknowledged) = std::sync::mpsc::channel();
    let mut in_flight = 0;
    for step in 0..STEPS {
        let bounds = log.bounds();
        let next = bounds.last.as_ref().map(|last| last.index + 1);
        let next = next.or_else(|| told.lock().unwrap().acknowledged.purged.map(|purged| purged + 1)).unwrap_or(0);
        let kind = dice.below(20);
        if kind < 17 {
            let some = (0..1 + dice.below(12)).map(|offset| {
                let bytes =
                    vec![(step % 251) as u8; dice.below(900) as usize + usize::from(dice.below(30) == 0) * 9000];
                Record { index: next + offset, bytes: bytes.into() }
            });
            let some: Vec<_> = some.collect();
            submit(&Step::Append(some.clone()));
            let (told, sender) = (told.clone(), sender.clone());
            let done = move |result: Result<(), Error>| {
                if result.is_ok() {
                    acknowledge(&told);
                }
                // A client that has noticed does not listen any more.
                let _ = sender.send(result);
            };
            if wait(log.append(some, done)).is_err() {
                return;
            }
            in_flight += 1;
            if dice.below(3) > 0 {
                continue;
            }
        }
        // The rest is asked for one at a time, so that what may be found after a cut stays easy to say.
        if !(0..in_flight).all(|_| acknowledged.recv().unwrap().is_ok()) {
            return;
        }
        in_flight = 0;
        let (Some(first), Some(last)) = (bounds.first, bounds.last.map(|last| last.index)) else { continue };
        let done = match kind {
            17 => {
                let vote = vec![step as u8; 30];
                submit(&Step::Vote(vote.clone()));
                wait(log.put(Meta::Vote, vote))
            }
            18 => {
                let after = first + dice.below(last - first + 1);
                submit(&Step::Truncate(Some(after)));
                wait(log.truncate_after(Some(after)))
            }
            19 => {
                let to = first + dice.below(last - first + 1);
                submit(&Step::Purge(to));
                wait(log.purge_to(to, to.to_be_bytes().to_vec()))
            }
            _ => continue,
        };
        if done.is_err() {
            return;
        }
        acknowledge(told);
    }
    // Of what is still in flight each is told in the end, whether it was done or not.
    (0..in_flight).for_each(|_| drop(acknowledged.recv().unwrap()));
}

/// Opens the image and holds it against what was promised.
fn check(cut: &Cut, name: &str) {
    let config = || Config { reserve: 0, ..Config::new(&cut.dir) };
    // The power does not go again, so nothing needs to be synced.
    let open = || Log::open_on(config(), Arc::new(Small));
    let (log, worker) = open().unwrap_or_else(|cause| panic!("{name} does not open: {cause:?}"));
    let found = log.read(..).unwrap();
    let vote = log.get(Meta::Vote);
    let indexes =
        |records: &[Record]| records.first().zip(records.last()).map(|(first, last)| (first.index, last.index));
    assert!(
        cut.told.allows(&found, &vote),
        "{name}: found {:?}, acknowledged {:?}, pending {:?}",
        indexes(&found),
        indexes(&cut.told.acknowledged.records()),
        cut.told.pending
    );

    // It goes on from there, and what it shows now stays.
    let next = found.last().map(|last| last.index + 1).or(purged(&log.bounds()).map(|purged| purged + 1)).unwrap_or(0);
    append(&log, records(next..=next, 9)).unwrap();
    wait(log.close()).unwrap();
    worker.join();
    let (log, worker) = open().unwrap();
    assert!(log.read(..).unwrap() == [found, records(next..=next, 9)].concat(), "{name}: other after a restart");
    wait(log.close()).unwrap();
    worker.join();
}

fn purged(bounds: &Bounds) -> Option<u64> {
    bounds.last_purged.as_ref().map(|note| u64::from_be_bytes(note[..].try_into().unwrap()))
}

/// Lives on until the process is killed, and has the store opened once more, which is when the power goes most.
fn be_killed(fragile: &Arc<Fragile>, dice: &mut Dice) {
    let (log, worker) = fragile.open();
    fragile.set(Process::Mortal, CUT_ODDS);
    live(&log, &fragile.told, dice);
    // One that came through all of it closes like any other.
    let closed = wait(log.close());
    worker.join();
    let killed = fragile.state.lock().unwrap().process == Process::Killed;
    assert!(killed || closed.is_ok(), "{closed:?}");

    fragile.set(Process::Safe, CUT_ODDS_OPENING);
    let (log, worker) = fragile.open();
    let (found, vote) = (log.read(..).unwrap(), log.get(Meta::Vote));
    {
        let mut told = fragile.told.lock().unwrap();
        assert!(told.allows(&found, &vote), "killed with {:?} pending", told.pending);
        // What was shown has to stay.
        let records = found.into_iter().map(|record| (record.index, record)).collect();
        *told = Told { acknowledged: Model { records, purged: purged(&log.bounds()), vote }, pending: VecDeque::new() };
    }
    fragile.set(Process::Safe, CUT_ODDS);
    wait(log.close()).unwrap();
    worker.join();
}

#[test]
fn no_power_cut_loses_what_was_acknowledged_or_keeps_the_store_from_opening() {
    let mut dice = Dice::new();
    let mut cuts = 0;
    for life in 0..LIVES {
        let dir = tempfile::tempdir().unwrap();
        let fragile = Fragile::new(dir.path(), dice.roll());
        // Half of the lives begin in a store that has been open before.
        for _ in 0..1 + life % 2 {
            let (log, worker) = fragile.open();
            live(&log, &fragile.told, &mut dice);
            wait(log.close()).unwrap();
            worker.join();
        }
        let kills = if life % 4 < 2 { KILLS } else { 0 };
        for _ in 0..kills {
            be_killed(&fragile, &mut dice);
        }
        cuts += fragile.check_cuts(&format!("life {life}"));
    }
    println!("{cuts} cuts");
    assert!(cuts >= 100, "only {cuts} cuts were made");
}

#[test]
fn a_purge_killed_before_its_mark_was_synced_is_finished_at_opening_whenever_the_power_goes() {
    let mut dice = Dice::new();
    for round in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let fragile = Fragile::new(dir.path(), dice.roll());
        fragile.set(Process::Safe, NO_CUTS);
        let (log, worker) = fragile.open();
        let all: Vec<_> = (0..30)
            .map(|index| Record { index, bytes: vec![index as u8; SEGMENT_BYTES as usize / 4].into() })
            .collect();
        all.iter().for_each(|record| append(&log, vec![record.clone()]).unwrap());
        *fragile.told.lock().unwrap() = {
            let mut acknowledged = Model::default();
            acknowledged.apply(Step::Append(all));
            Told { acknowledged, pending: [Step::Purge(20)].into() }
        };
        fragile.set(Process::Killed, NO_CUTS);
        assert!(wait(log.purge_to(20, 20_u64.to_be_bytes().to_vec())).is_err());
        assert!(wait(log.close()).is_err());
        worker.join();

        fragile.set(Process::Safe, 1);
        let (log, worker) = fragile.open();
        assert_eq!(log.bounds().first, Some(21), "the mark was read from the page cache");
        fragile.set(Process::Safe, NO_CUTS);
        wait(log.close()).unwrap();
        worker.join();
        assert!(fragile.check_cuts(&format!("round {round}")) > 0);
    }
}
