//! Writing so that nobody, a crash and a full disk included, leaves a part of a file.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Mode 0600: its owner.
    Private,
    /// Mode 0644: everyone.
    Public,
}

/// Makes a directory and its parents, with mode 0700 for those that are new. An existing directory is left as it is: its
/// owner may share it on purpose, and the secrets in it are private by their own mode.
///
/// # Errors
/// What the system says.
pub fn make_dir(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes a directory that has its content from the beginning: `fill` puts it into one of another name, which then takes this one. So it is whole
/// or absent, after a crash and on a full disk too. Returns false, and changes nothing, where another process has made it meanwhile.
///
/// # Errors
/// What `fill` says, and what the system says, as `failed` words it.
pub fn make_dir_whole<E>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
    failed: impl Fn(io::Error) -> E,
) -> Result<bool, E> {
    let temporary = temporary(path).map_err(&failed)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_dir(parent).map_err(&failed)?;
    }
    let made = make_dir(&temporary).map_err(&failed).and_then(|()| fill(&temporary)).and_then(|()| {
        match fs::rename(&temporary, path) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                Ok(false)
            }
            Err(error) => Err(failed(error)),
        }
    });
    if !matches!(made, Ok(true)) {
        // The first error is the one to report; a leftover has a name that nothing reads.
        let _ = fs::remove_dir_all(&temporary);
        return made;
    }
    sync_dir(path).map_err(failed)?;
    made
}

/// Writes a file so that a reader, or a crash at any moment, finds the old content or the new one, never a part of it. Its mode is there from
/// the beginning: a secret is readable by nobody else, not even for a moment.
///
/// # Errors
/// What the system says; the old content, if there was one, is still there.
pub fn write(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    Staged::new(path, content, access)?.publish()?;
    sync_dir(path)
}

/// The same for two files that belong together. Both are on the disk before either has its name, so a full disk leaves neither; only a crash
/// between the two renames leaves the first one alone.
///
/// # Errors
/// Which file it was, and what the system says.
pub fn write_pair<'a>(
    first: (&'a Path, &[u8], Access),
    second: (&'a Path, &[u8], Access),
) -> Result<(), (&'a Path, io::Error)> {
    let stage = |(path, content, access): (&'a Path, &[u8], Access)| {
        Staged::new(path, content, access).map_err(|error| (path, error))
    };
    let (one, other) = (stage(first)?, stage(second)?);
    for (staged, path) in [(one, first.0), (other, second.0)] {
        staged.publish().map_err(|error| (path, error))?;
    }
    [first.0, second.0].into_iter().try_for_each(|path| sync_dir(path).map_err(|error| (path, error)))
}

/// Whether others than its owner can read this file. `false` where that is unknown.
pub fn others_can_read(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o044 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// A file that is complete and has another name yet. Dropping it deletes it.
struct Staged<'a> {
    temporary: PathBuf,
    path: &'a Path,
    published: bool,
}

impl<'a> Staged<'a> {
    fn new(path: &'a Path, content: &[u8], access: Access) -> io::Result<Self> {
        let temporary = temporary(path)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(
            &mut options,
            match access {
                Access::Private => 0o600,
                Access::Public => 0o644,
            },
        );
        #[cfg(not(unix))]
        let _ = access;
        let mut file = options.open(&temporary)?;
        // From here on it is deleted where something fails.
        let staged = Self { temporary, path, published: false };
        file.write_all(content)?;
        file.sync_all()?;
        Ok(staged)
    }

    fn publish(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, self.path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.published {
            // The first error is the one to report; a leftover has a name that nothing reads.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A name beside this one, because a rename is atomic only within one file system; and one that nobody else has, since another process may be
/// at it, and one in another container may have the same number.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"));
    };
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:016x}.tmp", RandomState::new().build_hasher().finish()));
    Ok(dir.join(temporary))
}

/// A rename is durable only once its directory is.
fn sync_dir(path: &Path) -> io::Result<()> {
    // `parent()` of a bare file name is "".
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_private_from_the_beginning_and_again_when_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write(&path, b"one", Access::Private).unwrap();
        assert_eq!((mode(&path), others_can_read(&path)), (0o600, false));
        for loosened in [0o644, 0o640, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(loosened)).unwrap();
            assert!(others_can_read(&path), "{loosened:o}");
        }
        write(&path, b"two", Access::Private).unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, b"two".to_vec()));
        assert_eq!(names(dir.path()), ["secret"]);
    }

    #[test]
    fn of_a_pair_neither_is_there_where_the_second_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good"), dir.path().join("none/bad"));
        let (failed, error) = write_pair((&good, b"a", Access::Private), (&bad, b"b", Access::Public)).unwrap_err();
        assert_eq!((failed, error.kind()), (bad.as_path(), io::ErrorKind::NotFound));
        assert_eq!(names(dir.path()), Vec::<String>::new());
        let other = dir.path().join("other");
        write_pair((&good, b"a", Access::Private), (&other, b"b", Access::Public)).unwrap();
        assert_eq!((mode(&good), mode(&other)), (0o600, 0o644));
        assert_eq!(names(dir.path()), ["good", "other"]);
    }

    #[test]
    fn a_directory_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/certs");
        let failed = |error: io::Error| error;
        let half = |folder: &Path| {
            write(&folder.join("one"), b"1", Access::Public)?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert_eq!(make_dir_whole(&path, half, failed).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(names(&dir.path().join("deep")), Vec::<String>::new());
        let whole = |folder: &Path| write(&folder.join("one"), b"1", Access::Public);
        assert!(make_dir_whole(&path, whole, failed).unwrap());
        assert_eq!((mode(&path), names(&path)), (0o700, vec!["one".to_owned()]));
        assert!(!make_dir_whole(&path, whole, failed).unwrap(), "somebody was faster");
        assert_eq!(names(&dir.path().join("deep")), ["certs"]);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), b"", Access::Public).is_err(), "a directory is no file");
        assert!(write(Path::new("/"), b"", Access::Public).is_err());
        let parent = fs::read_dir(dir.path().parent().unwrap()).unwrap();
        let name = dir.path().file_name().unwrap().to_string_lossy().into_owned();
        let leftover = parent.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        assert_eq!(leftover.filter(|found| found.contains(&name)).count(), 1, "no temporary file is left");
    }
}
