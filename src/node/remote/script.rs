//! Scripts for a shell elsewhere, made so that nothing in a path or a setting can be taken for shell.

/// All verbs, as functions.
pub(super) const VERBS: &str = include_str!("verbs.sh");

/// One word of a POSIX shell: `'it'\''s'`.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A command with its words quoted.
pub(super) fn command<I: AsRef<str>>(words: impl IntoIterator<Item = I>) -> String {
    words.into_iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// `NAME='value'`, a line each. Names are ours.
pub(super) fn variables<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    pairs.into_iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect()
}

/// The same, for programs too.
pub(super) fn exported<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    pairs.into_iter().map(|(name, value)| format!("{name}={}\nexport {name}\n", quoted(value))).collect()
}

/// A question to a standing shell: it runs only when all of it has arrived, and its end is told with its status on a line that
/// begins with the token.
pub(super) fn question(script: &str, token: &str) -> String {
    format!("{{ (\n{script}\n) </dev/null 2>&1; printf '\\n%s %s\\n' {} \"$?\"; }}\n", quoted(token))
}

/// A long work as a whole script: it ends when it is done, or soon after whoever sent it has gone away, for the standard input is
/// kept open as a lifeline. Secrets are in the environment, never among arguments.
pub(super) fn long(variables: &str, work: &str) -> String {
    let body = format!("{VERBS}\n{work}\n");
    format!("{{ exec 3<&0 </dev/null\n{variables}PGMEND_BODY={}\nexport PGMEND_BODY\n{LIFELINE}}}\n", quoted(&body))
}

/// `setsid` gives the work a group of its own, so that all of it can be ended; where there is none, its first process is.
const LIFELINE: &str = r#"S=$(command -v setsid || :)
(
    exec 3<&-
    exec $S sh -c 'eval "$PGMEND_BODY"'
) &
w=$!
(
    cat <&3 >/dev/null
    kill -s TERM -- "-$w" || kill -s TERM "$w"
    sleep 5
    kill -s KILL -- "-$w" || kill -s KILL "$w"
) >/dev/null 2>&1 &
l=$!
exec 3<&-
wait "$w"
r=$?
kill "$l" 2>/dev/null
exit "$r"
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// What a shell says to a script on its standard input.
    fn shell(script: &str) -> (String, Option<i32>) {
        let mut child = Command::new("sh")
            .arg("-s")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(script.as_bytes()).unwrap();
        drop(input);
        let out = child.wait_with_output().unwrap();
        (String::from_utf8_lossy(&out.stdout).into_owned(), out.status.code())
    }

    #[test]
    fn no_word_is_taken_for_shell() {
        for word in ["a b", "it's", "$(touch /tmp/x)", "`id`", "a\"b", "\\", "a\nb", "-n", "*", "'; exit 7; '", ""] {
            let (out, code) = shell(&format!("printf '%s|' {}\n", command([word, "end"])));
            assert_eq!((out, code), (format!("{word}|end|"), Some(0)));
            let (out, _) = shell(&format!("{}printf '%s|' \"$A\"\n", variables([("A", word)])));
            assert_eq!(out, format!("{word}|"));
        }
    }

    #[test]
    fn a_question_runs_whole_or_not_at_all_and_tells_its_status() {
        let whole = question("echo one; exit 20", "token");
        assert_eq!(shell(&whole), ("one\n\ntoken 20\n".to_owned(), Some(0)));
        for cut in [whole.len() - 3, whole.len() / 2, 20] {
            let (out, _) = shell(whole.get(..cut).unwrap());
            assert_eq!(out, "", "cut at {cut}");
        }
    }

    #[test]
    fn long_work_tells_its_status_and_ends_with_its_lifeline() {
        // The shell of the test closes the input at once, as a connection that broke does.
        let begun = std::time::Instant::now();
        let (out, code) = shell(&long("", "echo begun; sleep 100"));
        assert!(begun.elapsed() < std::time::Duration::from_secs(20) && code != Some(0), "{out} {code:?}");
        let mut child = Command::new("sh").arg("-s").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let script = long(&exported([("A", "it's")]), "printf '%s' \"$A\"; exit 20");
        input.write_all(script.as_bytes()).unwrap();
        let status = child.wait().unwrap();
        drop(input);
        let mut out = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut out).unwrap();
        assert_eq!((out.as_str(), status.code()), ("it's", Some(20)));
    }
}
