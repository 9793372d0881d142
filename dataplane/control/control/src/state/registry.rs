//! The names of one kind of object, and the objects behind them.
//!
//! A name is taken by [`Registry::reserve`] before the slow work of making an object begins, and given back by dropping the
//! [`Reservation`]. [`Registry::take`] is the way back: the object is out of use, and the name free once the reservation is dropped.

use crate::limits;
use api::RpcError;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;

/// A kind of object that has a name of its own.
pub(crate) trait Object: Send + Sync + 'static {
    /// The kind, as refusals call one object of it.
    const KIND: &'static str;
    /// The method that lists the objects.
    const LISTED_BY: &'static str;
    /// Objects at most.
    const LIMIT: usize;
    /// What to do where the name of a new object is taken.
    const NAME_TAKEN: &'static str = "choose another name, or delete what has this one";
    /// What is kept with a name while the object is being made, exists, or is being taken down.
    type Claims: Default + Send;
}

/// All objects of a kind, in the order in which they were reserved.
pub(crate) struct Registry<T: Object>(Arc<Mutex<Vec<Slot<T>>>>);

/// A name that is taken.
pub(crate) struct Slot<T: Object> {
    pub(crate) name: String,
    /// `None` while the object is being made or taken down.
    pub(crate) object: Option<Arc<T>>,
    pub(crate) claims: T::Claims,
}

/// A name that is taken while its object is being made or taken down. Dropping it frees the name.
#[must_use]
pub(crate) struct Reservation<T: Object> {
    registry: Registry<T>,
    name: String,
    filled: bool,
}

impl<T: Object> Default for Registry<T> {
    fn default() -> Registry<T> {
        Registry(Arc::default())
    }
}

impl<T: Object> Clone for Registry<T> {
    fn clone(&self) -> Registry<T> {
        Registry(self.0.clone())
    }
}

impl<T: Object> Registry<T> {
    /// Takes the name that `field` of a call gives to an object that is about to be made.
    pub(crate) fn reserve(&self, field: &str, name: &str) -> Result<Reservation<T>, RpcError> {
        check_name(field, name)?;
        let mut slots = self.slots();
        if slots.iter().any(|slot| slot.name == name) {
            return Err(RpcError::name_taken(field, name).hint(T::NAME_TAKEN));
        }
        if slots.len() >= T::LIMIT {
            return Err(RpcError::limit(&format!("{}s", T::KIND), T::LIMIT));
        }
        slots.push(Slot { name: name.to_owned(), object: None, claims: T::Claims::default() });
        Ok(Reservation { registry: self.clone(), name: name.to_owned(), filled: false })
    }

    /// The object of that name.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<T>, RpcError> {
        let found = self.slots().iter().find(|slot| slot.name == name).and_then(|slot| slot.object.clone());
        found.ok_or_else(|| Self::no_such(name))
    }

    /// All objects that are there.
    pub(crate) fn list(&self) -> Vec<Arc<T>> {
        self.slots().iter().filter_map(|slot| slot.object.clone()).collect()
    }

    /// Takes an object out of use. Its name stays taken until the reservation is dropped.
    pub(crate) fn take(&self, name: &str) -> Result<(Arc<T>, Reservation<T>), RpcError> {
        self.take_if(name, |_| Ok(()))
    }

    /// Takes an object out of use, unless its claims forbid it.
    pub(crate) fn take_if(
        &self,
        name: &str,
        check: impl FnOnce(&T::Claims) -> Result<(), RpcError>,
    ) -> Result<(Arc<T>, Reservation<T>), RpcError> {
        let mut slots = self.slots();
        let slot = slots.iter_mut().find(|slot| slot.name == name && slot.object.is_some());
        let slot = slot.ok_or_else(|| Self::no_such(name))?;
        check(&slot.claims)?;
        let object = slot.object.take().expect("looked at above");
        Ok((object, Reservation { registry: self.clone(), name: name.to_owned(), filled: false }))
    }

    /// The names with their objects and claims.
    pub(crate) fn slots(&self) -> MutexGuard<'_, Vec<Slot<T>>> {
        self.0.lock()
    }

    pub(crate) fn no_such(name: &str) -> RpcError {
        RpcError::no_such(T::KIND, name).hint(format!("{} lists the {}s", T::LISTED_BY, T::KIND))
    }
}

impl<T: Object> Reservation<T> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn registry(&self) -> &Registry<T> {
        &self.registry
    }

    /// Puts the object behind its name.
    pub(crate) fn fill(mut self, object: impl Into<Arc<T>>) {
        self.filled = true;
        let mut slots = self.registry.slots();
        let slot = slots.iter_mut().find(|slot| slot.name == self.name).expect("a reserved name has a slot");
        slot.object = Some(object.into());
    }
}

impl<T: Object> Drop for Reservation<T> {
    fn drop(&mut self) {
        if !self.filled {
            self.registry.slots().retain(|slot| slot.name != self.name);
        }
    }
}

/// Refuses a name that does not fit into paths and logs.
pub(crate) fn check_name(field: &str, name: &str) -> Result<(), RpcError> {
    let accepted = !name.is_empty()
        && name.len() <= limits::NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '/');
    if accepted {
        return Ok(());
    }
    let expected = format!("1 to {} bytes without white space or '/', not beginning with '.'", limits::NAME_BYTES);
    Err(RpcError::invalid(field, serde_json::json!(name), expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(u32);

    impl Object for Thing {
        const KIND: &'static str = "thing";
        const LISTED_BY: &'static str = "thing_get";
        const LIMIT: usize = 2;
        type Claims = u32;
    }

    fn names(things: &Registry<Thing>) -> Vec<u32> {
        things.list().iter().map(|thing| thing.0).collect()
    }

    #[test]
    fn a_reserved_name_is_taken_until_the_reservation_is_dropped() {
        let things = Registry::<Thing>::default();
        let first = things.reserve("name", "a").unwrap();
        assert!(things.reserve("name", "a").is_err() && things.get("a").is_err());
        drop(first);
        things.reserve("name", "a").unwrap().fill(Thing(1));
        assert_eq!(names(&things), [1]);
        let (taken, reservation) = things.take("a").unwrap();
        assert!(taken.0 == 1 && things.take("a").is_err() && things.reserve("name", "a").is_err());
        drop(reservation);
        things.reserve("name", "a").unwrap().fill(Thing(2));
        assert_eq!(things.get("a").unwrap().0, 2);
    }

    #[test]
    fn objects_in_use_and_beyond_the_limit_are_refused() {
        let things = Registry::<Thing>::default();
        things.reserve("name", "a").unwrap().fill(Thing(1));
        let second = things.reserve("name", "b").unwrap();
        assert!(things.reserve("name", "c").err().unwrap().message.contains("at most 2 things"));
        drop(second);
        things.slots()[0].claims = 7;
        let busy = |claims: &u32| if *claims == 7 { Err(RpcError::errno(libc::EBUSY, "busy")) } else { Ok(()) };
        assert!(things.take_if("a", busy).is_err());
        assert_eq!(names(&things), [1]);
        assert!(things.get("b").err().unwrap().data.hint.unwrap().contains("thing_get lists the things"));
    }

    #[test]
    fn names_that_do_not_fit_into_paths_are_refused() {
        for bad in ["", ".hidden", "a b", "a/b", "a\n", &"x".repeat(limits::NAME_BYTES + 1)] {
            assert!(check_name("name", bad).is_err(), "{bad:?}");
        }
        check_name("name", "disk-0.a").unwrap();
    }
}
