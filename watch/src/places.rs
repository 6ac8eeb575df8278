//! Which directory entries lead to a file.
//!
//! A path means another file when any symbolic link on its way is switched, as Kubernetes switches
//! `..data` in a mounted secret and certbot the links in `live/`. So the way is walked by hand, link
//! by link (as `path_resolution(7)` says), and each entry that decides where it goes is a [`Place`].

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

/// Most links on one way; Linux stops at as many (`ELOOP`).
const MAX_LINKS: usize = 40;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Without symbolic links.
    pub(super) directory: PathBuf,
    pub(super) name: OsString,
}

/// The entries that decide what `path` is: each symbolic link on its way, the file at its end, and
/// where something is missing, the first that is.
pub(super) fn places(path: &Path) -> BTreeSet<Place> {
    let mut places = BTreeSet::new();
    let mut links = 0;
    let mut at = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let mut ahead: VecDeque<OsString> = steps(path);
    while let Some(step) = ahead.pop_front() {
        match Path::new(&step).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => {
                at.pop();
            }
            Some(Component::Normal(_)) => {
                let entry = at.join(&step);
                let place = Place { directory: at.clone(), name: step };
                match fs::read_link(&entry) {
                    Ok(target) => {
                        places.insert(place);
                        links += 1;
                        if links > MAX_LINKS {
                            break;
                        }
                        for step in steps(&target).into_iter().rev() {
                            ahead.push_front(step);
                        }
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        places.insert(place);
                        break;
                    }
                    Err(_) if ahead.is_empty() => {
                        places.insert(place);
                    }
                    Err(_) => {}
                }
                at = entry;
            }
            _ => {}
        }
    }
    places
}

fn steps(path: &Path) -> VecDeque<OsString> {
    path.components().map(|component| component.as_os_str().to_owned()).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::Scratch;

    fn place(directory: &Path, name: &str) -> Place {
        Place { directory: directory.to_owned(), name: name.into() }
    }

    #[test]
    fn a_plain_file_is_one_entry_of_its_directory() {
        let scratch = Scratch::new("a-plain-file");
        fs::write(scratch.path("tls.crt"), "x").unwrap();
        assert_eq!(places(&scratch.path("tls.crt")), [place(scratch.root(), "tls.crt")].into());
    }

    #[test]
    fn every_link_on_the_way_of_a_kubernetes_secret_counts() {
        let scratch = Scratch::new("kubernetes-places");
        fs::create_dir(scratch.path("..2026_1")).unwrap();
        fs::write(scratch.path("..2026_1/tls.crt"), "x").unwrap();
        symlink("..2026_1", scratch.path("..data")).unwrap();
        symlink("..data/tls.crt", scratch.path("tls.crt")).unwrap();
        let expected = [
            place(scratch.root(), "tls.crt"),
            place(scratch.root(), "..data"),
            place(&scratch.path("..2026_1"), "tls.crt"),
        ];
        assert_eq!(places(&scratch.path("tls.crt")), expected.into());
    }

    #[test]
    fn what_is_missing_is_waited_for_where_it_would_appear() {
        let scratch = Scratch::new("missing-places");
        assert_eq!(places(&scratch.path("a/b/tls.crt")), [place(scratch.root(), "a")].into());
    }

    #[test]
    fn links_that_lead_in_a_circle_end() {
        let scratch = Scratch::new("circle");
        symlink("b", scratch.path("a")).unwrap();
        symlink("a", scratch.path("b")).unwrap();
        let expected = [place(scratch.root(), "a"), place(scratch.root(), "b")];
        assert_eq!(places(&scratch.path("a")), expected.into());
    }
}
