//! Rules as text, and who fits them.

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
    rules
        .decide(&Ask { tls, peer: peer.map(|p| p.parse().unwrap()), user, database, roles: &[], replication: false })
        .method
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
        ("local all all kerberos", "unknown authentication method \"kerberos\"; valid are trust, reject"),
        ("host all all all gss", "\"gss\" is not supported by pgmend"),
        ("host all all all ident", "over TCP"),
        ("host all all all cert", "hostssl lines only"),
        ("host all all all peer", "local lines only"),
        ("host all all all md5 clientcert=verify-ca", "hostssl lines only"),
        ("hostssl all all all cert clientcert=verify-ca", "says less"),
        ("hostssl all all all md5 clientcert=1", "expected clientcert="),
        ("hostssl all all all cert map=x", "map \"x\" is not in ident_file"),
        ("hostssl all all all cert clientname=X", "clientname=CN"),
        ("local all all md5 ldapserver=x", "goes with ldap only"),
        ("local all all ldap", "ldap needs ldapserver"),
        ("local all all md5 pamservice=x", "option \"pamservice\" goes with pam only"),
        ("local all all md5 odd", "name=value"),
        ("hostgssenc all all all trust", "valid are local, host, hostssl, hostnossl"),
        ("host all all 10.0.0.1 trust", "not a mask"),
        ("host all all 10.0.0.0/33 trust", "not a range"),
        ("host all all db.example trust", "host name"),
        ("host @names all all trust", "no file can be included here"),
        ("include other.conf", "no file can be included here"),
        ("include", "expected one path"),
        ("host /( all all trust", "regular expression"),
        ("host all all", "ends before its address"),
        ("local all \"all md5", "quote"),
        ("local all, ", "comma"),
        ("local ,all all trust", "comma"),
    ] {
        let error = HbaRules::parse(&format!("# first\n{line}\n"), "hba.conf").unwrap_err().to_string();
        assert!(error.starts_with("hba.conf:2: ") && error.contains(why), "{line}: {error}");
    }
}

#[test]
fn pam_where_it_is_built_in_and_a_plain_word_where_not() {
    let read = |options: &str| {
        let rules = HbaRules::parse(&format!("local all all pam {options}"), "hba.conf");
        let ask = Ask { tls: false, peer: None, user: "a", database: "b", roles: &[], replication: false };
        rules.map(|rules| rules.decide(&ask).clone()).map_err(|error| error.to_string())
    };
    if !cfg!(feature = "pam") {
        assert!(read("").unwrap_err().contains("--features pam"));
        return;
    }
    let demand = read("pamservice=sso pam_use_hostname=1").unwrap();
    let pam = PamSettings { service: Some("sso".into()), use_hostname: true };
    assert_eq!((demand.method, demand.pam), (Method::Pam, pam));
    assert_eq!(read("").unwrap().pam, PamSettings::default());
    for (options, why) in [
        ("pamservice=../x", "expected the name of a PAM service"),
        ("pam_use_hostname=yes", "expected pam_use_hostname=0 or"),
        ("pam_x=1", "\"pam_x\" is not supported"),
        ("ldapserver=x", "goes with ldap only"),
    ] {
        let error = read(options).unwrap_err();
        assert!(error.contains(why), "{options}: {error}");
    }
}

#[test]
fn without_a_file_one_method_serves_all() {
    let rules = HbaRules::uniform(Method::Scram);
    let ask = Ask { tls: false, peer: None, user: "a", database: "b", roles: &[], replication: false };
    assert_eq!(rules.decide(&ask).method, Method::Scram);
    assert_eq!(rules.decide(&Ask { peer: Some([1, 2, 3, 4].into()), ..ask }).method, Method::Scram);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn no_text_panics(text in "(host|local|all|[ \",\\\\#\n+@/0-9a-z.]){0,30}", any in ".{0,40}") {
        let _ = HbaRules::parse(&text, "f");
        let _ = HbaRules::parse(&any, "f");
    }
}

struct Folder(&'static [(&'static str, &'static str)]);

impl Files for Folder {
    fn read(&self, path: &std::path::Path) -> Result<Option<String>, String> {
        Ok(self.0.iter().find(|(name, _)| std::path::Path::new(name) == path).map(|(_, text)| (*text).to_owned()))
    }
    fn list(&self, folder: &std::path::Path) -> Result<Vec<std::path::PathBuf>, String> {
        Ok(self.0.iter().map(|(name, _)| name.into()).filter(|p: &std::path::PathBuf| p.starts_with(folder)).collect())
    }
}

fn among(text: &str, files: &Folder) -> Result<HbaRules, AuthError> {
    let maps = IdentMaps::parse("m /^(.*)@x$ \\1\nr anna +staff", "ident", files).unwrap();
    let networks = ["10.1.2.3/16".parse().unwrap()];
    HbaRules::parse_among(text, "/etc/hba", &Surroundings { files, networks: &networks, maps: &maps })
}

fn method(rules: &HbaRules, peer: &str, user: &str, database: &str, roles: &[&str]) -> Method {
    let roles: Vec<String> = roles.iter().map(|role| (*role).to_owned()).collect();
    rules
        .decide(&Ask {
            tls: true,
            peer: Some(peer.parse().unwrap()),
            user,
            database,
            roles: &roles,
            replication: false,
        })
        .method
}

#[test]
fn included_files_stand_in_the_place_of_their_line() {
    let files = Folder(&[
        ("/etc/more/a.conf", "host all a all trust\n"),
        ("/etc/more/b.conf", "include ../sub\n"),
        ("/etc/more/c.other", "nonsense"),
        ("/etc/more/../sub", "host all @names all md5\n"),
        ("/etc/more/../names", "b, c\n# nobody\n@names2\n"),
        ("/etc/more/../names2", "\"d\""),
        ("/etc/loop", "include loop"),
        ("/etc/bad", "\nhost x"),
    ]);
    let rules =
        among("include_if_exists none\ninclude_dir more\nhost all d all reject\nhost all all all password", &files);
    let rules = rules.unwrap();
    let asked = ["a", "b", "c", "d", "e"].map(|user| method(&rules, "1.2.3.4", user, "x", &[]));
    assert_eq!(asked, [Method::Trust, Method::Md5, Method::Md5, Method::Md5, Method::Password]);
    for (text, why) in [
        ("include none", "/etc/hba:1: /etc/none does not exist"),
        ("include loop", "/etc/loop:1: more than 10 files"),
        ("include bad", "/etc/bad:2: the line ends"),
        ("host all @none all trust", "/etc/none does not exist"),
    ] {
        assert!(among(text, &files).unwrap_err().to_string().contains(why), "{text}");
    }
}

#[test]
fn patterns_roles_and_this_hosts_networks() {
    let text = "host /^db\\d+$ all samehost trust\nhost \"/^x{1,2}$\" /^app_ samenet md5\n\
                host all +staff 1.2.3.0/24 password\nhost samerole all 1.2.4.0/24 scram-sha-256\n\
                hostssl all mapped all cert map=m clientname=DN\nhostssl all all all md5 clientcert=verify-full map=r";
    let rules = among(text, &Folder(&[])).unwrap();
    for (peer, user, database, roles, expected) in [
        ("10.1.2.3", "u", "db7", &[][..], Method::Trust),
        ("10.1.9.9", "app_1", "xx", &[], Method::Md5),
        ("1.2.3.4", "anna", "x", &["anna", "staff"], Method::Password),
        ("1.2.4.4", "anna", "staff", &["anna", "staff"], Method::Scram),
        ("1.2.4.4", "mapped", "other", &["mapped"], Method::Cert),
        ("9.9.9.9", "anna", "x", &[], Method::Md5),
    ] {
        assert_eq!(method(&rules, peer, user, database, roles), expected, "{peer} {user} {database}");
    }
    let demand = |user| {
        rules
            .decide(&Ask {
                tls: true,
                peer: Some([9, 9, 9, 9].into()),
                user,
                database: "x",
                roles: &[],
                replication: false,
            })
            .clone()
    };
    let cert = demand("mapped");
    assert_eq!((cert.client_cert, cert.subject), (ClientCert::VerifyFull, Subject::DistinguishedName));
    assert!(cert.names("anna@x", "anna", &[]) && !cert.names("anna@y", "anna", &[]));
    assert!(demand("u").names("anna", "u", &["staff".to_owned()]) && !demand("u").names("u", "u", &[]));
    assert!(rules.need_roles() && rules.need_client_certificates() && !rules.need_ldap_tls());
    let needs = |peer: &str, user, database| {
        rules.need_roles_of(&Ask {
            tls: true,
            peer: Some(peer.parse().unwrap()),
            user,
            database,
            roles: &[],
            replication: false,
        })
    };
    assert!(!needs("10.1.2.3", "u", "db7"), "an earlier rule decides");
    assert!(needs("1.2.3.4", "anna", "x") && needs("1.2.4.4", "anna", "x"));
    assert!(!needs("9.9.9.9", "mapped", "x") && needs("9.9.9.9", "anna", "x"), "the map of the last names a role");
    assert!(Demand::of(Method::Cert).names("u", "u", &[]) && !Demand::of(Method::Cert).names("U", "u", &[]));
}
