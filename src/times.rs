//! Times as people write and read them. Nothing here looks at a clock.

use std::time::Duration;

use types::UnixMillis;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no duration: a whole number and a unit, such as `90s`, `30m`, `12h`, `7d`")]
pub(crate) struct ParseDurationError(String);

/// From `90s`, `30m`, `12h`, `7d`. A number without a unit is refused: everyone would take it for something else.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, ParseDurationError> {
    let wrong = || ParseDurationError(text.chars().take(40).collect());
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let number = &text[..text.len() - unit.len_utf8()];
    let seconds_each: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let digits_only = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits_only.then(|| number.parse().ok()).flatten().ok_or_else(wrong)?;
    count.checked_mul(seconds_each).map(Duration::from_secs).ok_or_else(wrong)
}

/// The largest unit that fits, rounded down: `42 s`, `3 min`, `5 h`, `12 d`.
pub(crate) fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3_600 => format!("{} min", seconds / 60),
        seconds @ 3_600..86_400 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// `3 min ago`, `in 59 min`, `now`.
pub(crate) fn relative(time: UnixMillis, now: UnixMillis) -> String {
    match (now.since(time), time.since(now)) {
        (past, _) if past.as_secs() > 0 => format!("{} ago", rough(past)),
        (_, coming) if coming.as_secs() > 0 => format!("in {}", rough(coming)),
        _ => "now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit_only() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("30m"), Ok(Duration::from_secs(1_800)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3_600)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in
            ["", "h", "60", "1 h", "-1h", "+1h", "1.5h", "1w", "1µ", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_rounded_down_to_one_unit() {
        let shown = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 1_000_000].map(|s| rough(Duration::from_secs(s)));
        assert_eq!(shown, ["0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "1 d", "11 d"]);
    }

    #[test]
    fn a_time_is_told_from_now() {
        let now = UnixMillis(1_800_000_000_000);
        let at = |seconds: i64| UnixMillis(now.0.saturating_add_signed(seconds * 1_000));
        let told = [-180, -86_400 * 9, 0, 3_570].map(|seconds| relative(at(seconds), now));
        assert_eq!(told, ["3 min ago", "9 d ago", "now", "in 59 min"]);
        assert_eq!(relative(UnixMillis(now.0 - 400), now), "now");
    }
}
