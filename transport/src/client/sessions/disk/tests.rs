#![allow(clippy::unwrap_used)]

use std::{
    collections::HashSet,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use tempfile::TempDir;

use super::*;
use crate::{client::sessions::record::Item, limits::TICKETS_PER_SERVER};

const SERVER: &str = "agent-1.agent.titan.internal";
const DAY: Duration = Duration::from_secs(86_400);

struct Place {
    _temp: TempDir,
    dir: PathBuf,
    now: SystemTime,
}

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("cache").join("sessions");
        Self { _temp: temp, dir, now: SystemTime::now() }
    }

    /// As another process would open it.
    fn disk(&self) -> Disk {
        Disk::new(self.dir.clone(), [1; 32])
    }

    /// Of as many tickets as `bytes`, each good for a day.
    fn record(&self, bytes: impl IntoIterator<Item = u8>) -> Record {
        let expires_at = unix(self.now + DAY);
        let tickets = bytes.into_iter().map(|byte| Item { expires_at, bytes: vec![byte] }).collect();
        Record { tickets, ..Record::default() }
    }

    fn put(&self, bytes: impl IntoIterator<Item = u8>) {
        self.disk().put(SERVER, self.record(bytes), self.now).unwrap();
    }

    fn take(&self) -> Option<u8> {
        self.take_at(self.now)
    }

    fn take_at(&self, now: SystemTime) -> Option<u8> {
        let ticket = self.disk().take(SERVER, now).unwrap()?.tickets.pop()?;
        Some(ticket.bytes[0])
    }

    fn file(&self) -> PathBuf {
        self.disk().place(SERVER).0
    }

    fn names(&self) -> HashSet<String> {
        fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn what_one_process_leaves_another_takes_once() {
    let place = Place::new();
    assert_eq!(place.take(), None);
    assert!(!place.dir.exists(), "looking makes no directory");
    place.put([1, 2]);
    assert_eq!([place.take(), place.take(), place.take()], [Some(2), Some(1), None]);
}

#[test]
fn files_are_this_users_alone() {
    let place = Place::new();
    place.put([1]);
    place.take();
    assert_eq!(fs::metadata(&place.dir).unwrap().mode() & 0o777, 0o700);
    for name in place.names() {
        assert_eq!(fs::metadata(place.dir.join(&name)).unwrap().mode() & 0o777, 0o600, "{name}");
        assert!(!name.contains("agent"), "{name} says whom this user talks to");
    }
}

#[test]
fn the_round_trip_time_stays_and_the_address_is_taken() {
    let place = Place::new();
    let (rtt, address) = (Some(Duration::from_millis(80)), Some(([192, 0, 2, 1], 50052).into()));
    place.disk().put(SERVER, Record { rtt, address, ..Record::default() }, place.now).unwrap();
    let take = || place.disk().take(SERVER, place.now).unwrap().map(|record| (record.rtt, record.address));
    assert_eq!([take(), take()], [Some((rtt, address)), Some((rtt, None))]);
}

#[test]
fn no_session_is_taken_twice_by_processes_at_the_same_time() {
    const TAKERS: usize = 8;
    let place = Arc::new(Place::new());
    let taken = Mutex::new(Vec::new());
    let start = Barrier::new(TAKERS + 1);
    let all_put = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..TAKERS {
            scope.spawn(|| {
                start.wait();
                while !all_put.load(SeqCst) {
                    // A directory that is busy for too long gives no session; that is not what is tested here.
                    let record = place.disk().take(SERVER, place.now).ok().flatten();
                    taken.lock().unwrap().extend(record.and_then(|mut record| record.tickets.pop()));
                }
            });
        }
        start.wait();
        for byte in 0..100 {
            let _ = place.disk().put(SERVER, place.record([byte]), place.now);
        }
        all_put.store(true, SeqCst);
    });
    let taken: Vec<u8> = taken.into_inner().unwrap().into_iter().map(|ticket| ticket.bytes[0]).collect();
    assert!(!taken.is_empty());
    assert_eq!(taken.iter().collect::<HashSet<_>>().len(), taken.len(), "{taken:?}");
}

#[test]
fn another_identity_or_server_finds_nothing() {
    let place = Place::new();
    place.put([1]);
    let other = Disk::new(place.dir.clone(), [2; 32]);
    assert_eq!(other.take(SERVER, place.now).unwrap(), None);
    assert_eq!(place.disk().take("agent-2.agent.titan.internal", place.now).unwrap(), None);
    // Even with the file's name changed.
    fs::rename(place.file(), other.place(SERVER).0).unwrap();
    assert_eq!(other.take(SERVER, place.now).unwrap(), None);
}

#[test]
fn expired_sessions_are_deleted() {
    let place = Place::new();
    place.put([1]);
    assert_eq!(place.take_at(place.now + 2 * DAY), None);
    place.put([2]);
    let later = place.now + 2 * DAY;
    place.disk().put(SERVER, Record::default(), later).unwrap();
    assert_eq!(place.take(), None, "it went when the file was written after its time");
    // Good for longer than anything may be: not from a server that keeps the rules.
    let forever = Record { tickets: vec![Item { expires_at: u64::MAX, bytes: vec![1] }], ..Record::default() };
    place.disk().put(SERVER, forever, place.now).unwrap();
    assert_eq!(place.take(), None);
}

#[test]
fn files_of_servers_that_are_not_met_any_more_are_deleted() {
    let place = Place::new();
    place.put([1]);
    let later = place.now + SESSION_AGE + DAY;
    place.disk().put("other", place.record([1]), later).unwrap();
    assert!(!place.file().exists());
    assert_eq!(place.names().len(), 2, "the lock and one file");
}

#[test]
fn the_number_of_files_and_of_sessions_is_bounded() {
    let place = Place::new();
    for server in 0..SESSION_SERVERS + 5 {
        for _ in 0..3 {
            place.disk().put(&format!("agent-{server}"), place.record(0..TICKETS_PER_SERVER as u8), place.now).unwrap();
        }
    }
    assert_eq!(place.names().len(), SESSION_SERVERS + 1, "with the lock");
    let last = format!("agent-{}", SESSION_SERVERS + 4);
    let took = std::iter::from_fn(|| place.disk().take(&last, place.now).unwrap()?.tickets.pop()).count();
    assert_eq!(took, TICKETS_PER_SERVER);
}

#[test]
fn a_file_that_cannot_be_used_is_no_error_and_is_replaced() {
    let place = Place::new();
    place.put([1]);
    let whole = fs::read(place.file()).unwrap();
    let contents = [vec![], b"garbage".to_vec(), whole[..whole.len() / 2].to_vec(), vec![0; 2 * MAX_RECORD_BYTES]];
    for content in contents {
        fs::write(place.file(), &content).unwrap();
        assert_eq!(place.take(), None);
        place.put([2]);
        assert_eq!(place.take(), Some(2));
    }
}

#[test]
fn a_file_that_others_can_read_or_choose_is_not_used() {
    let place = Place::new();
    place.put([1]);
    fs::set_permissions(place.file(), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(place.take(), None);
    place.put([2]);
    let elsewhere = place.dir.join("elsewhere");
    fs::rename(place.file(), &elsewhere).unwrap();
    symlink(&elsewhere, place.file()).unwrap();
    assert_eq!(place.take(), None);
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let place = Place::new();
    place.put([1]);
    fs::set_permissions(&place.dir, fs::Permissions::from_mode(0o770)).unwrap();
    let error = place.disk().take(SERVER, place.now).unwrap_err();
    assert!(matches!(error, DiskError::NotOurs { .. }) && error.to_string().contains("chmod 700"), "{error}");
    assert!(place.disk().put(SERVER, Record::default(), place.now).is_err());
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error_of_put_alone() {
    let place = Place::new();
    fs::write(place._temp.path().join("cache"), "a file").unwrap();
    assert!(matches!(place.disk().put(SERVER, place.record([1]), place.now), Err(DiskError::Io { .. })));
    assert_eq!(place.disk().take(SERVER, place.now).unwrap(), None);
}

#[test]
fn a_directory_that_another_process_holds_is_not_waited_for() {
    let place = Place::new();
    place.put([1]);
    let lock = place.disk().lock().unwrap();
    assert!(matches!(place.disk().take(SERVER, place.now), Err(DiskError::Busy { .. })));
    drop(lock);
    assert_eq!(place.take(), Some(1));
}

#[test]
fn leftovers_of_a_writer_that_was_killed_go() {
    let place = Place::new();
    place.put([1]);
    let leftover = place.dir.join("0000").with_extension(UNFINISHED);
    fs::write(&leftover, "half").unwrap();
    place.disk().put("other", place.record([1]), place.now).unwrap();
    assert!(!leftover.exists());
    assert_eq!(place.take(), Some(1));
}
