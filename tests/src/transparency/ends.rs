//! What either end does in a row: each a short story of its own, told by name in the list of rows.

use std::time::Duration;

use rustix::event::PollFlags;
use socket2::SockRef;

use super::play::{End, Log, PATIENCE, name, wait};

pub(super) fn greet(mut end: End) -> Log {
    end.send(5);
    end.done()
}

pub(super) fn read_all(mut end: End) -> Log {
    end.read_to_end();
    end.done()
}

pub(super) fn end_then_write(mut end: End) -> Log {
    end.read_to_end();
    end.write_until_error();
    end.done()
}

/// Closes without a word.
pub(super) fn close(end: End) -> Log {
    end.done()
}

/// Sends when the peer has closed, and reads only then.
pub(super) fn send_to_the_closed(mut end: End) -> Log {
    if !end.hears(PollFlags::RDHUP) {
        end.say("no end heard");
    }
    end.send(1000);
    // Either the error, or that nothing came of it: both are told by what follows.
    let _ = end.hears(PollFlags::ERR);
    end.read_to_end();
    end.write_until_error();
    end.done()
}

pub(super) fn answer_at_end(mut end: End) -> Log {
    end.read_to_end();
    end.send(100_000);
    end.done()
}

pub(super) fn ask_and_half_close(mut end: End) -> Log {
    end.send(1000);
    end.half_close();
    end.read_to_end();
    end.done()
}

pub(super) fn half_close_and_read(mut end: End) -> Log {
    end.send(5);
    end.half_close();
    end.read_to_end();
    end.done()
}

pub(super) fn read_end_then_send(mut end: End) -> Log {
    end.read_to_end();
    end.send(5000);
    end.done()
}

/// Ends first, and has its end acknowledged.
pub(super) fn end_first(mut end: End) -> Log {
    end.send(5);
    end.half_close();
    end.acknowledged();
    end.read_to_end();
    end.done()
}

/// The last FIN of the connection.
pub(super) fn end_last(mut end: End) -> Log {
    end.read_to_end();
    end.half_close();
    end.acknowledged();
    end.done()
}

pub(super) fn read_to_end(mut end: End) -> Log {
    end.take(10);
    // Told to go: the reset must not overtake what was sent before.
    end.send(1);
    end.read_to_end();
    end.done()
}

pub(super) fn send_and_reset(mut end: End) -> Log {
    end.send(10);
    end.take(1);
    end.reset()
}

pub(super) fn take_and_reset(mut end: End) -> Log {
    end.take(10);
    end.send(5);
    end.take(1);
    end.reset()
}

pub(super) fn send_and_read_to_end(mut end: End) -> Log {
    end.send(10);
    end.take(5);
    end.send(1);
    end.read_to_end();
    end.done()
}

pub(super) fn ask_and_read(mut end: End) -> Log {
    end.send(10);
    end.read_to_end();
    end.done()
}

/// The end of a database that refuses: SO_LINGER 0 behind its last words.
pub(super) fn last_words<const COUNT: usize>(mut end: End) -> Log {
    end.take(10);
    end.send(COUNT);
    end.sent();
    end.reset()
}

pub(super) fn last_words_unasked<const COUNT: usize>(mut end: End) -> Log {
    end.send(COUNT);
    end.sent();
    end.reset()
}

const REQUEST: u16 = 20_000;

/// 413 before the body was read: the kernel resets what was not read.
pub(super) fn answer_unread(mut end: End) -> Log {
    end.arrived(REQUEST.into());
    end.take(10);
    end.send(100);
    end.sent();
    end.done()
}

pub(super) fn ask_much(mut end: End) -> Log {
    end.send(REQUEST.into());
    end.read_to_end();
    end.done()
}

pub(super) fn much_both_ways(mut end: End) -> Log {
    const MUCH: usize = 2 << 20;
    let Ok(stream) = end.stream.try_clone() else {
        end.say("cannot be cloned");
        return end.done();
    };
    let log = end.log.another();
    let writing = std::thread::spawn(move || {
        let mut end = End { stream, log };
        end.send(MUCH);
        end.half_close();
        end.done()
    });
    end.take(MUCH);
    end.read_to_end();
    match writing.join() {
        Ok(log) => end.log.join(log),
        Err(_) => end.say("the writer panicked"),
    }
    end.done()
}

const A_WHILE: Duration = Duration::from_secs(2);

pub(super) fn answer_late(mut end: End) -> Log {
    end.read_to_end();
    wait(A_WHILE);
    end.send(1000);
    end.done()
}

pub(super) fn speak_late(mut end: End) -> Log {
    wait(A_WHILE);
    end.send(100);
    end.take(100);
    end.done()
}

/// The urgent byte in its place among the others, for who asks for that.
pub(super) fn read_urgent_inline(mut end: End) -> Log {
    if let Err(error) = SockRef::from(&end.stream).set_out_of_band_inline(true) {
        end.say(format!("inline: {error}"));
    }
    end.read_to_end();
    end.done()
}

/// The urgent byte by MSG_OOB, then the others.
pub(super) fn read_urgent(mut end: End) -> Log {
    // All has come by then, the urgent byte as well.
    if !end.hears(PollFlags::RDHUP) {
        end.say("no end heard");
    }
    let mut byte = [std::mem::MaybeUninit::uninit()];
    match SockRef::from(&end.stream).recv_out_of_band(&mut byte) {
        Ok(count) => end.say(format!("{count} urgent")),
        Err(error) => end.say(format!("urgent: {}", name(&error))),
    }
    end.read_to_end();
    end.done()
}

pub(super) fn send_urgent(mut end: End) -> Log {
    end.send(1);
    if let Err(error) = SockRef::from(&end.stream).send_out_of_band(b"!") {
        end.say(format!("urgent: {error}"));
    }
    end.send(1);
    end.done()
}

pub(super) fn say_nothing(end: End) -> Log {
    wait(PATIENCE);
    end.done()
}

pub(super) fn send_and_read(mut end: End) -> Log {
    end.send(5);
    end.read_to_end();
    end.done()
}
