//! The way of a line to stderr: by a thread of its own, so that whoever logs never waits for a terminal that is held, a pipe that nobody
//! reads or a disk that is full, and never hears of it.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

use super::format;

/// Lines that wait to be written: a burst of debugging, and at some 300 bytes each no more than a megabyte.
const MAX_LINES: usize = 4096;
/// Between two tries where the queue is full or stderr is one that does not wait.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes lines. Its clones are one.
#[derive(Clone)]
pub(super) struct Queue {
    entries: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
    json: bool,
}

enum Entry {
    Line(Vec<u8>),
    /// Everything before it has been written, or lost.
    Flush(SyncSender<()>),
}

impl Queue {
    /// Writes to `out`, as JSON or for people, until all clones are gone.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(out: impl Write + Send + 'static, json: bool) -> io::Result<Self> {
        let (entries, taken) = sync_channel(MAX_LINES);
        let queue = Self { entries, lost: Arc::default(), json };
        let out = Out { out, torn: false, lost: Arc::clone(&queue.lost), json };
        thread::Builder::new().name("log".to_owned()).spawn(move || out.write_all(&taken))?;
        Ok(queue)
    }

    /// A line of our own, which no filter leaves out.
    pub(super) fn say(&self, level: &str, message: &str) {
        self.push(format::line(self.json, level, message));
    }

    /// The same for a text of several lines, for people as it is.
    pub(super) fn say_lines(&self, level: &str, text: &str) {
        match self.json {
            true => self.say(level, text),
            false => self.push(format!("{}\n", text.trim_end()).into_bytes()),
        }
    }

    /// Never waits.
    pub(super) fn push(&self, line: Vec<u8>) {
        if self.entries.try_send(Entry::Line(line)).is_err() {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Waits until everything pushed before is written or lost, and no longer than `within`.
    pub(super) fn flush(&self, within: Duration) {
        let until = Instant::now() + within;
        let (done, told) = sync_channel(1);
        let mut entry = Entry::Flush(done);
        while let Err(TrySendError::Full(back)) = self.entries.try_send(entry) {
            if Instant::now() > until {
                return;
            }
            entry = back;
            thread::sleep(PAUSE);
        }
        // Whether it was in time changes nothing for whoever asked.
        let _ = told.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Pushing<'a>;

    fn make_writer(&'a self) -> Pushing<'a> {
        Pushing(self)
    }
}

/// One event: the library writes it at once.
pub(super) struct Pushing<'a>(&'a Queue);

impl Write for Pushing<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where lines go, and what has become of the last one.
struct Out<W> {
    out: W,
    /// The last line was written in part.
    torn: bool,
    lost: Arc<AtomicU64>,
    json: bool,
}

impl<W: Write> Out<W> {
    fn write_all(mut self, entries: &Receiver<Entry>) {
        for entry in entries {
            match entry {
                Entry::Line(line) => self.line(&line),
                // Whoever waited may have stopped waiting.
                Entry::Flush(done) => drop(done.send(())),
            }
        }
    }

    fn line(&mut self, line: &[u8]) {
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            let notice = format!("{lost} lines of this log could not be written");
            if !self.write(&format::line(self.json, "WARN", &notice)) {
                self.lost.fetch_add(lost + 1, Relaxed);
                return;
            }
        }
        if !self.write(line) {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// Whether all of it is written. What follows a part of a line begins on a new one.
    fn write(&mut self, line: &[u8]) -> bool {
        if self.torn && !self.bytes(b"\n") {
            return false;
        }
        self.torn = false;
        self.bytes(line)
    }

    fn bytes(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(written @ 1..) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Ok(0) | Err(_) => {
                    self.torn |= rest.len() < bytes.len();
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use super::*;

    /// Takes so many bytes and then none until it is given more room.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(usize, Vec<u8>)>>);

    impl Disk {
        fn with_room(bytes: usize) -> Self {
            Self(Arc::new(Mutex::new((bytes, Vec::new()))))
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().1.clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (room, content) = &mut *self.0.lock().unwrap();
            let taken = bytes.len().min(*room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= taken;
            content.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_counted_and_told_when_it_takes_more() {
        let disk = Disk::with_room(5 + 2);
        let queue = Queue::start(disk.clone(), false).unwrap();
        for line in ["one.\n", "two.\n", "three.\n"] {
            queue.push(line.into());
        }
        queue.flush(Duration::from_secs(60));
        assert_eq!(disk.text(), "one.\ntw");
        disk.0.lock().unwrap().0 = 10_000;
        queue.push(b"four.\n".to_vec());
        queue.flush(Duration::from_secs(60));
        let text = disk.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[1], lines[3]), ("one.", "tw", "four."), "{text}");
        assert!(lines[2].contains("WARN 2 lines of this log could not be written"), "{text}");
    }

    /// Says when it is written to, and never returns from that.
    struct Held(SyncSender<()>);

    impl Write for Held {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            loop {
                thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_that_has_stopped() {
        let (tell, held) = sync_channel(1);
        let queue = Queue::start(Held(tell), true).unwrap();
        queue.push(b"line\n".to_vec());
        held.recv().unwrap();
        for _ in 0..3 * MAX_LINES {
            queue.push(b"line\n".to_vec());
        }
        assert_eq!(queue.lost.load(Relaxed) as usize, 2 * MAX_LINES);
        queue.flush(Duration::from_millis(20));
    }
}
