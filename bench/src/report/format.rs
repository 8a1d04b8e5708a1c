//! Numbers, dates and text as people read them.

use crate::net::record::{Conditions, Event, Loss};

use super::estimate::{Estimate, Spread};

/// Where there is no figure.
pub(super) const DASH: &str = "–";

/// Three significant digits, thousands apart: 0.0123, 1.23, 12.3, 123, 1,234.
pub(super) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        _ if !value.is_finite() => return DASH.to_owned(),
        0.0 => return "0".to_owned(),
        // Smaller ones do not matter beside the others of a column.
        size if size < 0.000_05 => return "0".to_owned(),
        size if size < 0.01 => 4,
        size if size < 0.1 => 3,
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    grouped(&format!("{value:.decimals$}"))
}

/// Commas between thousands.
pub(super) fn grouped(number: &str) -> String {
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |rest| ("-", rest));
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let mut out = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// As short as it can be said: 100, 0.1.
pub(super) fn plain(value: f64) -> String {
    grouped(&format!("{value}"))
}

pub(super) fn median_of(estimate: Option<&Estimate>) -> String {
    estimate.map_or_else(|| DASH.to_owned(), |estimate| number(estimate.median))
}

/// The interval, or what stands in for it.
pub(super) fn spread_of(estimate: &Estimate) -> String {
    match estimate.spread {
        _ if estimate.n == 1 => "n = 1".to_owned(),
        Spread::Interval => between(estimate.low, estimate.high),
        Spread::Range => format!("min–max {}, n = {}", between(estimate.low, estimate.high), estimate.n),
    }
}

fn between(low: f64, high: f64) -> String {
    let (low, high) = (number(low), number(high));
    if low == high { low } else { format!("{low}–{high}") }
}

/// How much more `ours` is than `theirs`.
pub(super) fn more(ours: f64, theirs: f64) -> String {
    match ours / theirs {
        ratio if !ratio.is_finite() => "from nothing".to_owned(),
        ratio if ratio < 2.0 => format!("{} % more", number((ratio - 1.0) * 100.0)),
        ratio => format!("{} times", number(ratio)),
    }
}

/// A value in a cell or tag of HTML or SVG.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no way to write other control characters.
            letter if letter.is_control() => out.push(' '),
            letter => out.push(letter),
        }
    }
    out
}

/// The network in words, without what is usual.
pub(super) fn network(conditions: &Conditions) -> String {
    let mut parts = vec![format!("RTT {} ms", plain(conditions.rtt_ms)), loss(&conditions.loss)];
    if let Some(rate) = conditions.rate_mbit {
        parts.push(format!("{} Mbit/s", plain(rate)));
    }
    parts.push(format!("{} tokens/s", plain(conditions.token_rate)));
    parts.push(if conditions.streams == 1 { "1 stream".to_owned() } else { format!("{} streams", conditions.streams) });
    match conditions.event {
        Event::None => {}
        Event::AddressChange => parts.push("address change".to_owned()),
        Event::UdpBlocked => parts.push("UDP blocked".to_owned()),
        Event::AgentKilled => parts.push("agent killed".to_owned()),
    }
    parts.push(format!("TCP {}", conditions.congestion_control));
    parts.join(", ")
}

/// With the noun, unlike its `Display`.
pub(super) fn loss(loss: &Loss) -> String {
    match loss {
        Loss::None => "no loss".to_owned(),
        Loss::Iid { percent } => format!("{} % loss", plain(*percent)),
        Loss::Burst { percent, mean_packets } => {
            format!("{} % loss in bursts of {}", plain(*percent), plain(*mean_packets))
        }
    }
}

const DAY_S: u64 = 86_400;

/// `2026-01-31 23:59 UTC` of seconds since 1970.
pub(super) fn date(unix_s: u64) -> String {
    // Days to a date of the Gregorian calendar by eras of 400 years that begin in March (Hinnant, chrono-compatible algorithms).
    let days = unix_s / DAY_S + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let minutes = unix_s % DAY_S / 60;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_thousands_apart() {
        let cases = [
            (0.0, "0"),
            (0.012_34, "0.012"),
            (1.234, "1.23"),
            (9.999, "10.0"),
            (12.34, "12.3"),
            (999.6, "1,000"),
            (-1_234_567.0, "-1,234,567"),
            (f64::NAN, DASH),
            (f64::INFINITY, DASH),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text, "{value}");
        }
        assert_eq!(plain(0.1), "0.1");
    }

    #[test]
    fn text_cannot_become_a_tag() {
        assert_eq!(escape("<b a=\"1\">&'\u{1}"), "&lt;b a=&quot;1&quot;&gt;&amp;&#39; ");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_827_696), "2000-02-29 12:34 UTC");
        assert_eq!(date(1_798_761_540), "2026-12-31 23:59 UTC");
    }

    #[test]
    fn what_is_twice_as_much_is_said_in_times() {
        assert_eq!(more(1.5, 1.0), "50.0 % more");
        assert_eq!(more(3.0, 1.0), "3.00 times");
        assert_eq!(more(3.0, 0.0), "from nothing");
    }
}
