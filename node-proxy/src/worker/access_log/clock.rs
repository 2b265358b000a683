//! Times as text: RFC 3339 in UTC with microseconds. The part down to the second is made once per second.

use std::fmt::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

/// Turns times into text, and remembers the last second's.
#[derive(Debug)]
pub struct Clock {
    second: u64,
    // `2024-02-29T12:34:56`
    text: String,
}

impl Default for Clock {
    fn default() -> Self {
        Self { second: 0, text: to_the_second(0) }
    }
}

impl Clock {
    /// Appends the time to the text.
    pub fn write(&mut self, time: SystemTime, out: &mut impl fmt::Write) -> fmt::Result {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            self.text = to_the_second(self.second);
        }
        write!(out, "{}.{:06}Z", self.text, since.subsec_micros())
    }
}

/// One time as text, for admin.
pub fn timestamp(time: SystemTime) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = Clock::default().write(time, &mut text);
    text
}

fn to_the_second(since: u64) -> String {
    let (days, second) = (since / 86_400, since % 86_400);
    // Civil date from days since 1970, with years that start in March (H. Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = String::with_capacity(19);
    // Writing to a String cannot fail.
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
    }

    #[test]
    fn a_remembered_second_is_not_taken_for_another() {
        let mut clock = Clock::default();
        for micros in [1_709_210_096_000_007, 1_709_210_096_999_999, 1_709_210_097_000_000, 1_709_210_096_000_007] {
            let (time, mut text) = (UNIX_EPOCH + Duration::from_micros(micros), String::new());
            clock.write(time, &mut text).expect("a String takes it");
            assert_eq!(text, timestamp(time));
        }
    }
}
