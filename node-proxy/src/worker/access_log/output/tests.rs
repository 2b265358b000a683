//! A disk that fills up at any byte, and what is in the file afterwards.

use std::sync::{Arc, Mutex};

use super::*;

/// A disk with so much room left.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

impl Disk {
    fn with<T>(&self, f: impl FnOnce(&mut (Vec<u8>, usize)) -> T) -> T {
        f(&mut self.0.lock().expect("no panic while held"))
    }

    fn room(&self, bytes: usize) {
        self.with(|(_, room)| *room = bytes);
    }

    fn text(&self) -> String {
        self.with(|(bytes, _)| String::from_utf8(bytes.clone()).expect("text"))
    }
}

impl Sink for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|(all, room)| {
            let fits = bytes.len().min(*room);
            all.extend_from_slice(&bytes[..fits]);
            *room -= fits;
            if fits == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(fits) }
        })
    }

    fn len(&self) -> Option<u64> {
        Some(self.with(|(all, _)| all.len() as u64))
    }

    fn wait(&self) {}

    fn reopen(&mut self) -> io::Result<()> {
        self.with(|(all, _)| all.clear());
        Ok(())
    }
}

/// Lines that all differ; `%` ends each, so that one joined to another would show.
fn batch(from: u64, lines: u64) -> String {
    (from..from + lines).map(|n| format!("line {n}%\n")).collect()
}

fn whole(text: &str) -> u64 {
    text.lines().filter(|line| line.starts_with("line ") && line.find('%') == Some(line.len() - 1)).count() as u64
}

#[test]
fn wherever_the_disk_fills_up_no_line_is_cut_or_joined_and_each_is_written_or_counted() {
    let first = batch(0, 5);
    for room in 0..=first.len() {
        let disk = Disk::default();
        let mut output = Output::of(disk.clone());
        disk.room(room);
        let mut fates = vec![output.write(first.as_bytes(), 5), output.write(batch(5, 3).as_bytes(), 3)];
        // A little comes free, not enough for the rest of a line; then all that is wanted.
        disk.room(2);
        fates.push(output.write(batch(8, 2).as_bytes(), 2));
        disk.room(1 << 20);
        fates.push(output.write(batch(10, 4).as_bytes(), 4));
        let (text, lines) = (disk.text(), disk.text().lines().count() as u64);
        assert_eq!(whole(&text), lines, "room for {room}: {text}");
        let sum = |f: fn(&Fate) -> u64| fates.iter().map(f).sum::<u64>();
        assert_eq!((sum(|f| f.written), sum(|f| f.written) + sum(|f| f.lost)), (lines, 14), "room for {room}: {text}");
        assert!(text.ends_with("line 13%\n"), "room for {room}: {text}");
    }
}

#[test]
fn the_rest_of_a_line_whose_beginning_was_rotated_away_is_lost_and_counted() {
    for rotate in [
        |disk: &Disk, _: &mut Output| disk.with(|(all, _)| all.clear()),
        |_: &Disk, output: &mut Output| {
            assert_eq!(output.reopen(), Fate { written: 0, lost: 1 });
        },
    ] {
        let disk = Disk::default();
        let mut output = Output::of(disk.clone());
        disk.room(4);
        assert_eq!(output.write(batch(0, 2).as_bytes(), 2), Fate { written: 0, lost: 1 });
        rotate(&disk, &mut output);
        disk.room(1 << 20);
        let fate = output.write(batch(2, 1).as_bytes(), 1);
        assert_eq!(fate.written, 1);
        assert_eq!(disk.text(), batch(2, 1));
    }
}

#[test]
fn a_file_that_was_moved_away_is_opened_again_under_its_name() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let mut output = Output::file(path.clone()).expect("open");
    assert_eq!(output.write(b"a\n", 1), Fate { written: 1, lost: 0 });
    std::fs::rename(&path, &old).expect("rotate");
    output.write(b"b\n", 1);
    output.reopen();
    output.write(b"c\n", 1);
    assert_eq!(std::fs::read_to_string(old).expect("old"), "a\nb\n");
    assert_eq!(std::fs::read_to_string(path).expect("new"), "c\n");
}

#[test]
fn a_reader_that_closed_its_pipe_costs_the_lines_and_nothing_else() {
    let (read, write) = io::pipe().expect("pipe");
    let mut output = Output::of(Descriptor { file: File::from(std::os::fd::OwnedFd::from(write)), path: None });
    drop(read);
    for _ in 0..3 {
        assert_eq!(output.write(b"a\nb\n", 2), Fate { written: 0, lost: 2 });
    }
}
