//! What somebody else did to the store, done to this server's world: pure.
//!
//! Nothing is refused here. Whoever wrote it had seen everything before it, so it fits.

use config::{Service, manifest::Document};

use super::{
    world::World,
    write::{Effect, Write, perform, put_document, put_endpoint, take_document, take_endpoint},
};
use crate::store::{Object, Reference, StoreError, Table};

/// Puts or, without a value, removes the object called `key` of `table`.
///
/// # Errors
/// When the value cannot be read, as one of a newer program may not be; then nothing is done.
pub(super) fn replay(
    world: &mut World,
    (table, key): (Table, &str),
    value: Option<&[u8]>,
    revision: u64,
) -> Result<Effect, StoreError> {
    let mut effect = Effect::default();
    match value {
        Some(value) => match Object::read(table, key, value)? {
            Object::Document(_, document) => effect = put(world, *document, revision),
            Object::Endpoint(cluster, endpoint) => put_endpoint(world, &cluster, &endpoint, &mut effect),
        },
        None => match Reference::read(table, key) {
            Some(Reference::Document(object)) => take_document(world, &object, &mut effect),
            Some(Reference::Endpoint(cluster, id)) => {
                take_endpoint(world, &cluster, &id, &mut effect);
            }
            // A name that cannot be was never put.
            None => {}
        },
    }
    Ok(effect)
}

fn put(world: &mut World, document: Document, revision: u64) -> Effect {
    // A shift is told as a shift.
    if let Document::Service(new) = &document
        && let Some(entry) = world.service(&new.name)
        && entry.value.split != new.split
        && (Service { split: entry.value.split.clone(), ..new.clone() }) == *entry.value
    {
        let shift = Write::Split { service: new.name.clone(), split: new.split.clone(), if_match: None };
        let mut shifted = world.clone();
        if let Ok(effect) = perform(&mut shifted, &shift, revision) {
            *world = shifted;
            return effect;
        }
    }
    let mut effect = Effect::default();
    put_document(world, document.clone(), revision, &mut effect);
    if effect.documents.is_empty() {
        // The same again, at a newer revision.
        world.put(document, revision);
    }
    effect
}
