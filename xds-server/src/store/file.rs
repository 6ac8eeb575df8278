//! The embedded store: one redb file (copy-on-write B-trees, checksummed commits).

use std::{fmt::Display, path::Path};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::{Operation, Store, StoreError, Stored, Table};

const DOCUMENTS: TableDefinition<'_, &str, &str> = TableDefinition::new("documents");
const ENDPOINTS: TableDefinition<'_, &str, &str> = TableDefinition::new("endpoints");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const REVISION: &str = "revision";
/// The layout of the tables. A file with another one is refused rather than misread.
const LAYOUT: (&str, u64) = ("layout", 1);

/// A store in one file, used by one process at a time.
pub struct FileStore {
    database: Database,
    path: String,
}

impl FileStore {
    /// Opens `sluicegate.redb` in `directory`, creating both when missing.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join("sluicegate.redb").display().to_string();
        std::fs::create_dir_all(directory).map_err(|e| {
            let directory = directory.display();
            StoreError(format!(
                "cannot create the data directory {directory}: {e}; choose another with --data-dir"
            ))
        })?;
        let database = Database::create(&path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError(format!(
                "{path} is in use by another process; stop it, or choose another directory with --data-dir"
            )),
            other => StoreError(format!(
                "cannot open {path}: {other}; restore it from a backup, or move it away to start empty"
            )),
        })?;
        Ok(Self { database, path })
    }

    fn failed<'a>(&'a self, doing: &'static str) -> impl Fn(&dyn Display) -> StoreError + 'a {
        move |e| StoreError(format!("cannot {doing} {}: {e}", self.path))
    }

    fn read_all(&self) -> Result<Stored, redb::Error> {
        let mut stored = Stored::default();
        let transaction = self.database.begin_read()?;
        match transaction.open_table(META) {
            Ok(meta) => {
                let layout = meta.get(LAYOUT.0)?.map_or(0, |v| v.value());
                if layout != LAYOUT.1 {
                    let (path, ours) = (&self.path, LAYOUT.1);
                    return Err(redb::Error::Corrupted(format!(
                        "{path} has layout {layout}; this program reads layout {ours}"
                    )));
                }
                stored.revision = meta.get(REVISION)?.map_or(0, |v| v.value());
            }
            // A new file has no tables yet.
            Err(TableError::TableDoesNotExist(_)) => return Ok(stored),
            Err(other) => return Err(other.into()),
        }
        for (table, definition) in [(Table::Documents, DOCUMENTS), (Table::Endpoints, ENDPOINTS)] {
            for pair in transaction.open_table(definition)?.iter()? {
                let (key, value) = pair?;
                let read = stored.read(table, key.value(), value.value());
                read.map_err(|e| redb::Error::Corrupted(e.to_string()))?;
            }
        }
        Ok(stored)
    }

    fn write_all(&self, revision: u64, operations: &[Operation]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut documents = transaction.open_table(DOCUMENTS)?;
            let mut endpoints = transaction.open_table(ENDPOINTS)?;
            for operation in operations {
                let table = match operation.table {
                    Table::Documents => &mut documents,
                    Table::Endpoints => &mut endpoints,
                };
                match &operation.value {
                    Some(value) => drop(table.insert(operation.key.as_str(), value.as_str())?),
                    None => drop(table.remove(operation.key.as_str())?),
                }
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(LAYOUT.0, LAYOUT.1)?;
            meta.insert(REVISION, revision)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Store for FileStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.read_all().map_err(|e| self.failed("read")(&e))
    }

    fn commit(&mut self, revision: u64, operations: &[Operation]) -> Result<(), StoreError> {
        self.write_all(revision, operations).map_err(|e| self.failed("write")(&e))
    }
}
