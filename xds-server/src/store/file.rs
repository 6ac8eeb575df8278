//! The embedded store: one redb file (copy-on-write B-trees, checksummed commits).

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::{Operation, Scope, Store, StoreError, Stored, Table};

const DOCUMENTS: TableDefinition<'_, &str, &str> = TableDefinition::new("documents");
const ENDPOINTS: TableDefinition<'_, &str, &str> = TableDefinition::new("endpoints");
const RESOURCES: TableDefinition<'_, &str, &str> = TableDefinition::new("resources");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const REVISION: &str = "revision";
/// The layout of the tables. A file with another one is refused rather than misread.
const LAYOUT: (&str, u64) = ("layout", 1);

/// A store in one file, used by one process at a time.
pub struct FileStore {
    /// `None` after an error of the disk: redb refuses to go on with a database that met one, so it
    /// is opened again.
    database: Option<Database>,
    directory: PathBuf,
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
        let database = open(&path)?;
        // Keys may be in it.
        private(Path::new(&path))?;
        // The names of a new file and a new directory have to outlive a power loss as well.
        for directory in [Some(directory), directory.parent()].into_iter().flatten() {
            if let Err(error) = File::open(directory).and_then(|d| d.sync_all()) {
                tracing::debug!(%error, "cannot sync {}", directory.display());
            }
        }
        Ok(Self { database: Some(database), directory: directory.to_owned(), path })
    }

    /// The database, opened again after an error of the disk.
    fn database(&mut self) -> Result<&Database, StoreError> {
        if self.database.is_none() {
            self.database = Some(Self::open(&self.directory)?.take()?);
        }
        self.database.as_ref().ok_or_else(|| StoreError(format!("{} is not open", self.path)))
    }

    fn take(mut self) -> Result<Database, StoreError> {
        self.database.take().ok_or_else(|| StoreError(format!("{} is not open", self.path)))
    }
}

/// Keeps a file from everybody but its owner.
fn private(path: &Path) -> Result<(), StoreError> {
    let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, owner)
        .map_err(|e| StoreError(format!("cannot keep {} from other users: {e}", path.display())))
}

/// Opens or creates the file.
fn open(path: &str) -> Result<Database, StoreError> {
    Database::create(path).map_err(|e| match e {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError(format!(
            "{path} is in use by another process; stop it, or choose another directory with --data-dir"
        )),
        other => StoreError(format!(
            "cannot open {path}: {other}; restore it from a backup, or move it away to start empty"
        )),
    })
}

fn read_all(database: &Database, path: &str) -> Result<Stored, redb::Error> {
    let mut stored = Stored::default();
    let transaction = database.begin_read()?;
    match transaction.open_table(META) {
        Ok(meta) => {
            let layout = meta.get(LAYOUT.0)?.map_or(0, |v| v.value());
            if layout != LAYOUT.1 {
                let ours = LAYOUT.1;
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
    let tables =
        [(Table::Documents, DOCUMENTS), (Table::Endpoints, ENDPOINTS), (Table::Resources, RESOURCES)];
    for (table, definition) in tables {
        let opened = match transaction.open_table(definition) {
            // Nothing of it was ever written.
            Err(TableError::TableDoesNotExist(_)) => continue,
            opened => opened?,
        };
        for pair in opened.iter()? {
            let (key, value) = pair?;
            let read = stored.read(table, key.value(), value.value());
            read.map_err(|e| redb::Error::Corrupted(e.to_string()))?;
        }
    }
    Ok(stored)
}

fn write_all(
    database: &Database,
    revision: u64,
    operations: &[Operation],
    scope: Scope,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    if scope == Scope::Everything {
        transaction.delete_table(DOCUMENTS)?;
        transaction.delete_table(ENDPOINTS)?;
        transaction.delete_table(RESOURCES)?;
    }
    {
        let mut documents = transaction.open_table(DOCUMENTS)?;
        let mut endpoints = transaction.open_table(ENDPOINTS)?;
        let mut resources = transaction.open_table(RESOURCES)?;
        for operation in operations {
            let table = match operation.table {
                Table::Documents => &mut documents,
                Table::Endpoints => &mut endpoints,
                Table::Resources => &mut resources,
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

impl Store for FileStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let path = self.path.clone();
        read_all(self.database()?, &path).map_err(|e| {
            StoreError(format!(
                "cannot read {path}: {e}; restore it from a backup, or move it away to start empty"
            ))
        })
    }

    fn commit(&mut self, revision: u64, operations: &[Operation], scope: Scope) -> Result<(), StoreError> {
        let written = write_all(self.database()?, revision, operations, scope);
        written.map_err(|e| {
            self.database = None;
            StoreError(format!("cannot write {}: {e}; make room on its disk, or repair it", self.path))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(key: &str, value: Option<&str>) -> Operation {
        let value = value.map(str::to_owned);
        Operation { table: Table::Endpoints, key: key.to_owned(), value }
    }

    const ENDPOINT: &str = r#"{"id":"a","address":"127.0.0.1:9","lease":"permanent"}"#;

    fn directory() -> PathBuf {
        std::env::temp_dir().join(format!("sluicegate-store-{:016x}", fastrand::u64(..)))
    }

    #[test]
    fn what_is_committed_is_there_after_opening_again_and_only_once_at_a_time() {
        let directory = directory();
        let mut store = FileStore::open(&directory).unwrap();
        store.commit(7, &[operation("s/v1/a", Some(ENDPOINT))], Scope::Changes).unwrap();
        let refused = FileStore::open(&directory).err().unwrap().to_string();
        assert!(refused.contains("in use by another process"), "{refused}");
        drop(store);
        let stored = FileStore::open(&directory).unwrap().load().unwrap();
        assert_eq!((stored.revision, stored.endpoints.len()), (7, 1));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_store_that_was_closed_by_an_error_opens_again_and_takes_everything_anew() {
        let directory = directory();
        let mut store = FileStore::open(&directory).unwrap();
        store.commit(1, &[operation("s/v1/old", Some(ENDPOINT))], Scope::Changes).unwrap();
        store.database = None;
        store.commit(2, &[operation("s/v1/a", Some(ENDPOINT))], Scope::Everything).unwrap();
        let stored = store.load().unwrap();
        assert_eq!((stored.revision, stored.endpoints.len()), (2, 1));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_no_store_is_named_and_left_alone() {
        let directory = directory();
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("sluicegate.redb"), "not a database, but somebody's notes").unwrap();
        let error = FileStore::open(&directory).err().unwrap().to_string();
        assert!(error.contains("sluicegate.redb") && error.contains("backup"), "{error}");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
