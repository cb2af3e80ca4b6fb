//! Rules of who may connect how, in the language of `pg_hba.conf`.
//!
//! <https://www.postgresql.org/docs/17/auth-pg-hba-conf.html>; the first rule that fits decides, none means reject.

use super::AuthError;
use ipnet::IpNet;
use std::net::IpAddr;

/// Rules of one file; real files have dozens.
const MAX_RULES: usize = 10_000;
const METHODS: &str = "trust, reject, password, md5, scram-sha-256, cert";

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// It may not connect.
    Reject,
    /// Password in clear text.
    Password,
    /// MD5 challenge.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
    /// TLS client certificate; not built yet, so no rule holds it.
    Cert,
}

impl Method {
    /// The method of that name; the error lists the valid ones.
    pub fn parse(name: &str) -> Result<Method, String> {
        match name {
            "trust" => Ok(Method::Trust),
            "reject" => Ok(Method::Reject),
            "password" => Ok(Method::Password),
            "md5" => Ok(Method::Md5),
            "scram-sha-256" => Ok(Method::Scram),
            "cert" => Err("authentication method \"cert\" is not built yet".into()),
            other => Err(format!("unknown authentication method \"{other}\"; valid are {METHODS}")),
        }
    }
}

/// A client that asks.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// It came by TLS.
    pub tls: bool,
    /// Its address; `None` for a Unix socket.
    pub peer: Option<IpAddr>,
    /// Role.
    pub user: &'a str,
    /// Database.
    pub database: &'a str,
    /// It asks for physical replication, which has no database and rules of its own.
    pub replication: bool,
}

/// All rules, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct HbaRules {
    rules: Vec<Rule>,
}

impl HbaRules {
    /// Reads a file's text. `file_name` is for messages.
    pub fn parse(text: &str, file_name: &str) -> Result<HbaRules, AuthError> {
        let mut rules = Vec::new();
        for (line, text) in joined_lines(text) {
            let bad = |message: String| AuthError::Line { file: file_name.to_owned(), line, message };
            let fields = fields(&text).map_err(bad)?;
            if fields.is_empty() {
                continue;
            }
            if rules.len() == MAX_RULES {
                return Err(bad(format!("more than {MAX_RULES} rules")));
            }
            rules.push(rule(&fields).map_err(bad)?);
        }
        Ok(HbaRules { rules })
    }

    /// One method for everybody.
    pub fn uniform(method: Method) -> HbaRules {
        let rule = |kind| Rule {
            kind,
            databases: vec![Name::All, Name::Replication],
            users: vec![Name::All],
            net: None,
            method,
        };
        HbaRules { rules: vec![rule(Kind::Local), rule(Kind::Host)] }
    }

    /// The method of the first rule that fits; `Reject` when none does.
    pub fn decide(&self, ask: &Ask<'_>) -> Method {
        self.rules.iter().find(|rule| rule.fits(ask)).map_or(Method::Reject, |rule| rule.method)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Local,
    Host,
    HostTls,
    HostPlain,
}

#[derive(Clone, Debug, PartialEq)]
enum Name {
    All,
    SameUser,
    /// `replication`: physical replication, which nothing else fits.
    Replication,
    Exactly(String),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    kind: Kind,
    databases: Vec<Name>,
    users: Vec<Name>,
    /// `None` = every address.
    net: Option<IpNet>,
    method: Method,
}

impl Rule {
    fn fits(&self, ask: &Ask<'_>) -> bool {
        let kind = match self.kind {
            Kind::Local => ask.peer.is_none(),
            Kind::Host => ask.peer.is_some(),
            Kind::HostTls => ask.peer.is_some() && ask.tls,
            Kind::HostPlain => ask.peer.is_some() && !ask.tls,
        };
        let address = match (&self.net, ask.peer) {
            (None, _) => true,
            (Some(net), Some(peer)) => net.contains(&peer.to_canonical()),
            (Some(_), None) => false,
        };
        let named = |names: &[Name], text: &str| {
            names.iter().any(|name| match name {
                Name::All => true,
                Name::SameUser => ask.database == ask.user,
                Name::Replication => false,
                Name::Exactly(name) => name == text,
            })
        };
        let database = match ask.replication {
            true => self.databases.contains(&Name::Replication),
            false => named(&self.databases, ask.database),
        };
        kind && address && database && named(&self.users, ask.user)
    }
}

/// One word; a quoted word is never a keyword.
#[derive(Clone, Debug, PartialEq)]
struct Word {
    text: String,
    quoted: bool,
}

/// One field: words separated by commas.
type Field = Vec<Word>;

/// Lines with their numbers; a backslash at the end joins the next one.
fn joined_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        let (part, goes_on) = match line.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line, false),
        };
        match lines.last_mut() {
            Some((_, whole)) if open => whole.push_str(part),
            _ => lines.push((index + 1, part.to_owned())),
        }
        open = goes_on;
    }
    lines
}

fn fields(line: &str) -> Result<Vec<Field>, String> {
    let mut fields: Vec<Field> = Vec::new();
    let mut word: Option<Word> = None;
    let mut joins = false; // a comma awaits its next word
    let mut in_quotes = false;
    let mut close = |word: &mut Option<Word>, joins: bool| {
        if let Some(word) = word.take() {
            match fields.last_mut() {
                Some(field) if joins => field.push(word),
                _ => fields.push(vec![word]),
            }
            true
        } else {
            false
        }
    };
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => {
                chars.next();
                word.get_or_insert_with(Word::empty).text.push('"');
            }
            '"' => {
                in_quotes = !in_quotes;
                word.get_or_insert_with(Word::empty).quoted = true;
            }
            c if in_quotes => word.get_or_insert_with(Word::empty).text.push(c),
            '#' => break,
            ',' => {
                if !close(&mut word, joins) {
                    return Err("a comma without a name before it".into());
                }
                joins = true;
            }
            c if c.is_whitespace() => {
                if close(&mut word, joins) {
                    joins = false;
                }
            }
            c => word.get_or_insert_with(Word::empty).text.push(c),
        }
    }
    if in_quotes {
        return Err("a quote is not closed".into());
    }
    if !close(&mut word, joins) && joins {
        return Err("a comma without a name after it".into());
    }
    Ok(fields)
}

impl Word {
    fn empty() -> Word {
        Word { text: String::new(), quoted: false }
    }
}

fn rule(fields: &[Field]) -> Result<Rule, String> {
    let mut rest = fields.iter();
    let mut next = |what: &str| rest.next().ok_or_else(|| format!("the line ends before its {what}"));
    let kind = match single(next("type")?, "type")? {
        "local" => Kind::Local,
        "host" => Kind::Host,
        "hostssl" => Kind::HostTls,
        "hostnossl" => Kind::HostPlain,
        other => return Err(format!("unknown type \"{other}\"; valid are local, host, hostssl, hostnossl")),
    };
    let databases = next("database")?.iter().map(database).collect::<Result<_, _>>()?;
    let users = next("user")?.iter().map(user).collect::<Result<_, _>>()?;
    let mut net = None;
    if kind != Kind::Local {
        let address = single(next("address")?, "address")?;
        net = match address.parse::<IpAddr>() {
            Ok(ip) => Some(masked(ip, single(next("mask")?, "mask")?)?),
            Err(_) => range(address)?,
        };
    }
    let method = Method::parse(single(next("method")?, "method")?)?;
    if let Some(option) = rest.next().and_then(|field| field.first()) {
        return Err(format!("option \"{}\" after the method is not supported", option.text));
    }
    Ok(Rule { kind, databases, users, net, method })
}

fn single<'a>(field: &'a Field, what: &str) -> Result<&'a str, String> {
    match field.as_slice() {
        [word] => Ok(&word.text),
        _ => Err(format!("only one {what} is possible")),
    }
}

fn database(word: &Word) -> Result<Name, String> {
    match (word.quoted, word.text.as_str()) {
        (false, "sameuser") => Ok(Name::SameUser),
        (false, "replication") => Ok(Name::Replication),
        (false, word @ ("samerole" | "samegroup")) => {
            Err(format!("\"{word}\" needs the server's roles, which pgmend does not read; name the databases"))
        }
        _ => name(word),
    }
}

fn user(word: &Word) -> Result<Name, String> {
    match word.text.strip_prefix('+') {
        Some(_) if !word.quoted => {
            Err(format!("\"{}\" needs the server's roles, which pgmend does not read; name the users", word.text))
        }
        _ => name(word),
    }
}

fn name(word: &Word) -> Result<Name, String> {
    match (word.quoted, word.text.as_str()) {
        (false, "all") => Ok(Name::All),
        (false, text) if text.starts_with('@') => Err(format!("a file of names (\"{text}\") is not supported")),
        (false, text) if text.starts_with('/') => Err(format!("a regular expression (\"{text}\") is not supported")),
        (_, text) => Ok(Name::Exactly(text.to_owned())),
    }
}

fn range(address: &str) -> Result<Option<IpNet>, String> {
    match address {
        "all" => Ok(None),
        "samehost" | "samenet" => Err(format!("\"{address}\" is not supported; write the range, as 10.0.0.0/8")),
        _ if address.contains('/') => {
            address.parse::<IpNet>().map(Some).map_err(|_| format!("\"{address}\" is not a range, as 10.0.0.0/8"))
        }
        _ => Err(format!("host name \"{address}\" is not supported; write its address, as 10.0.0.1/32")),
    }
}

fn masked(ip: IpAddr, mask: &str) -> Result<IpNet, String> {
    let bad = || format!("\"{mask}\" is not a mask for {ip}; write one, as 255.255.255.0, or a range, as {ip}/32");
    IpNet::with_netmask(ip, mask.parse().map_err(|_| bad())?).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
# TYPE  DATABASE  USER  ADDRESS  METHOD
local     all               postgres                  trust
local     sameuser          all                       md5   # own database
host      all               mallory   all             reject
hostssl   app,"all", x      alice,bob 10.0.0.0/8      scram-sha-256
hostnossl app               alice     10.1.0.0 255.255.0.0 password
host      replication       all       all             trust
host      "odd ""name"      \
          all                         ::1/128         md5
"#;

    fn decide(tls: bool, peer: Option<&str>, user: &str, database: &str) -> Method {
        let rules = HbaRules::parse(FILE, "hba.conf").unwrap();
        rules.decide(&Ask { tls, peer: peer.map(|p| p.parse().unwrap()), user, database, replication: false })
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        assert_eq!(decide(false, None, "postgres", "app"), Method::Trust);
        assert_eq!(decide(false, None, "alice", "alice"), Method::Md5);
        assert_eq!(decide(false, None, "alice", "app"), Method::Reject);
        assert_eq!(decide(true, Some("10.9.9.9"), "alice", "app"), Method::Scram);
        assert_eq!(decide(true, Some("::ffff:10.9.9.9"), "bob", "x"), Method::Scram);
        assert_eq!(decide(true, Some("10.9.9.9"), "bob", "all"), Method::Scram);
        assert_eq!(decide(true, Some("10.9.9.9"), "bob", "other"), Method::Reject);
        assert_eq!(decide(false, Some("10.9.9.9"), "alice", "app"), Method::Reject);
        assert_eq!(decide(false, Some("10.1.9.9"), "alice", "app"), Method::Password);
        assert_eq!(decide(true, Some("10.9.9.9"), "mallory", "app"), Method::Reject);
        assert_eq!(decide(false, Some("::1"), "zoe", "odd \"name"), Method::Md5);
        assert_eq!(decide(false, Some("::1"), "zoe", "replication"), Method::Reject);
    }

    #[test]
    fn errors_name_file_line_and_remedy() {
        for (line, why) in [
            ("local all all ldap", "unknown authentication method \"ldap\"; valid are trust, reject"),
            ("hostssl all all all cert", "not built yet"),
            ("hostgssenc all all all trust", "valid are local, host, hostssl, hostnossl"),
            ("host all all 10.0.0.1 trust", "not a mask"),
            ("host all all 10.0.0.0/33 trust", "not a range"),
            ("host all all samenet trust", "write the range"),
            ("host all all db.example trust", "host name"),
            ("host all +admins all trust", "roles"),
            ("host samerole all all trust", "roles"),
            ("host @names all all trust", "file of names"),
            ("host all all", "ends before its address"),
            ("local all all md5 map=x", "option \"map=x\""),
            ("local all \"all md5", "quote"),
            ("local all, ", "comma"),
            ("local ,all all trust", "comma"),
        ] {
            let error = HbaRules::parse(&format!("# first\n{line}\n"), "hba.conf").unwrap_err().to_string();
            assert!(error.starts_with("hba.conf:2: ") && error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn without_a_file_one_method_serves_all() {
        let rules = HbaRules::uniform(Method::Scram);
        let ask = Ask { tls: false, peer: None, user: "a", database: "b", replication: false };
        assert_eq!(rules.decide(&ask), Method::Scram);
        assert_eq!(rules.decide(&Ask { peer: Some([1, 2, 3, 4].into()), ..ask }), Method::Scram);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn no_text_panics(text in "(host|local|all|[ \",\\\\#\n+@/0-9a-z.]){0,30}", any in ".{0,40}") {
            let _ = HbaRules::parse(&text, "f");
            let _ = HbaRules::parse(&any, "f");
        }
    }
}
