//! `primary_conninfo` of a standby, pointed at another server.

/// The same connection string to another host and port. `None` for a form that is not keywords and values.
pub fn repointed(conninfo: &str, host: &str, port: u16) -> Option<String> {
    let mut words = read(conninfo)?;
    // The address would win over the host.
    words.retain(|(key, _)| !matches!(key.as_str(), "host" | "hostaddr" | "port"));
    let mut all = Vec::new();
    if !host.is_empty() {
        all.push(("host".to_owned(), host.to_owned()));
    }
    all.push(("port".to_owned(), port.to_string()));
    all.extend(words);
    Some(all.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join(" "))
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// As libpq reads it: `key = value`, values in quotes or without, a backslash before any letter.
fn read(text: &str) -> Option<Vec<(String, String)>> {
    let (mut words, mut letters) = (Vec::new(), text.chars().peekable());
    loop {
        while letters.next_if(|c| c.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Some(words);
        }
        let mut key = String::new();
        while let Some(letter) = letters.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            key.push(letter);
        }
        while letters.next_if(|c| c.is_whitespace()).is_some() {}
        letters.next_if_eq(&'=').filter(|_| !key.is_empty())?;
        while letters.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = letters.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        let mut closed = !quoted;
        while let Some(letter) = letters.next_if(|c| quoted || !c.is_whitespace()) {
            match letter {
                '\\' => value.extend(letters.next()),
                '\'' if quoted => {
                    closed = true;
                    break;
                }
                other => value.push(other),
            }
        }
        if !closed {
            return None;
        }
        words.push((key, value));
    }
}

#[cfg(test)]
mod tests {
    use super::repointed;

    #[test]
    fn everything_but_the_place_stays() {
        let old = r"host=a hostaddr=10.0.0.1  port = '5432' user=x password='a\'b c' application_name=pgmend_2";
        assert_eq!(
            repointed(old, "b", 7).as_deref(),
            Some(r"host='b' port='7' user='x' password='a\'b c' application_name='pgmend_2'")
        );
        assert_eq!(repointed("", "/run", 1).as_deref(), Some("host='/run' port='1'"));
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        for wrong in ["postgres://a/b", "host", "password='x"] {
            assert_eq!(repointed(wrong, "b", 1), None, "{wrong}");
        }
    }
}
