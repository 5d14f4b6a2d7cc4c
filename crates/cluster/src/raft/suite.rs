//! The library's own tests of a log and a state machine, on both stores.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use store::{Log, MemoryDisk};

use super::Types;
use super::log::LogStore;
use super::machine::Machine;
use crate::runtime::Live;
use crate::shelf::Shelf;
use crate::view::View;

type Built<G> = (G, LogStore<Live>, Machine<Live>);

struct InMemory;

impl StoreBuilder<Types<Live>, LogStore<Live>, Machine<Live>> for InMemory {
    async fn build(&self) -> Result<Built<()>, StorageError<Types<Live>>> {
        let log = Log::on(&MemoryDisk::new()).unwrap();
        let shelf = Shelf::Memory(Default::default());
        let machine = Machine::open(View::new().into(), shelf, log.clone()).await.unwrap();
        Ok(((), LogStore::new(log), machine))
    }
}

struct OnDisk;

impl StoreBuilder<Types<Live>, LogStore<Live>, Machine<Live>, tempfile::TempDir> for OnDisk {
    async fn build(&self) -> Result<Built<tempfile::TempDir>, StorageError<Types<Live>>> {
        let folder = tempfile::tempdir().unwrap();
        let config = store::Config { reserve: 0, ..store::Config::new(folder.path().join("log")) };
        let (log, _) = Log::open(config).unwrap();
        let shelf = Shelf::Folder(folder.path().join("state"));
        let machine = Machine::open(View::new().into(), shelf, log.clone()).await.unwrap();
        Ok((folder, LogStore::new(log), machine))
    }
}

#[tokio::test]
async fn the_log_in_memory_passes_the_suite() {
    Suite::test_all(InMemory).await.unwrap();
}

#[tokio::test]
async fn the_log_on_disk_passes_the_suite() {
    Suite::test_all(OnDisk).await.unwrap();
}
