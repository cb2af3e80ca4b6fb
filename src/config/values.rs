//! Values as operators write them: durations with units, octal modes, on and off; and the nearest of known words.

use std::time::Duration;

/// Longest duration that is taken: ten years. Longer ones are surely mistakes and would overflow timers.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Reads `10s`, `500ms`, `2min`, `1h`, `1d`, or a plain number of `plain_unit`.
///
/// Errors say what was expected. A value rounds nowhere: `1500us` is one and a half milliseconds.
pub fn duration(text: &str, plain_unit: Duration) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("expected a duration such as \"10s\", \"500ms\", \"2min\" or \"1h\", found \"{text}\"");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let micros_per_unit: u64 = match unit.trim() {
        "" => u64::try_from(plain_unit.as_micros()).map_err(|_| wrong())?,
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(micros_per_unit).map(Duration::from_micros) {
        Some(value) if value <= MAX_DURATION => Ok(value),
        Some(_) | None => Err(format!("expected at most ten years, found \"{text}\"")),
    }
}

/// Reads PostgreSQL's booleans: on, off, true, false, yes, no, 1, 0 and their unique beginnings, in any case.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "tru" | "tr" | "t" | "yes" | "ye" | "y" | "1" => Ok(true),
        "off" | "of" | "false" | "fals" | "fal" | "fa" | "f" | "no" | "n" | "0" => Ok(false),
        _ => Err(format!("expected on or off, found \"{}\"", text.trim())),
    }
}

/// Reads an octal file mode such as `0777`.
pub fn mode(text: &str) -> Result<u32, String> {
    let digits = text.trim().trim_start_matches("0o");
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        Ok(_) | Err(_) => Err(format!("expected an octal mode from \"0000\" to \"0777\", found \"{text}\"")),
    }
}

/// The nearest of `known` to a word that is not among them, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `expected one of a, b, c, found "x"`, with a suggestion when one is near.
pub fn not_one_of(found: &str, allowed: &[&str]) -> String {
    let mut message = format!("expected one of {}, found \"{found}\"", allowed.join(", "));
    if let Some(near) = nearest(found, allowed.iter().copied()) {
        message.push_str(&format!("; did you mean \"{near}\"?"));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_with_and_without_units() {
        let read = |text| duration(text, Duration::from_secs(1));
        assert_eq!(read("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(read("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(read("2 min"), Ok(Duration::from_secs(120)));
        assert_eq!(read("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(read("7"), Ok(Duration::from_secs(7)));
        assert_eq!(duration("10000", Duration::from_millis(1)), Ok(Duration::from_secs(10)));
        assert!(read("10 parsecs").unwrap_err().contains("found \"10 parsecs\""));
        assert!(read("-1").is_err());
        assert!(read("").is_err());
        assert!(read("99999999999999999999h").is_err());
        assert!(read("9999999999999h").is_err());
    }

    #[test]
    fn booleans_and_modes() {
        assert_eq!(boolean("ON"), Ok(true));
        assert_eq!(boolean("0"), Ok(false));
        assert!(boolean("maybe").is_err());
        assert_eq!(mode("0777"), Ok(0o777));
        assert!(mode("0888").is_err());
        assert!(mode("7777").is_err());
    }

    #[test]
    fn nearest_word() {
        assert_eq!(nearest("defalt_pool_size", ["mode", "default_pool_size"]), Some("default_pool_size"));
        assert_eq!(nearest("zzz", ["mode", "default_pool_size"]), None);
    }
}
