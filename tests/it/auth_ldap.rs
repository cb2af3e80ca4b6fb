//! Passwords judged by a real LDAP server, in each way that the rules know.

use crate::support::pki::{authority, signed};
use crate::support::process::{kill, wait_until};
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend, Ran, as_postgres, bin, free_port, run};
use std::process::{Child, Stdio};
use std::time::Duration;

/// OpenLDAP with two people, as an ordinary user, plain and by TLS.
struct Ldap {
    child: Child,
    port: u16,
    tls_port: u16,
}

impl Drop for Ldap {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

const PEOPLE: &str = "dn: dc=example\nobjectClass: dcObject\nobjectClass: organization\no: example\ndc: example\n\n\
    dn: uid=anna,dc=example\nobjectClass: inetOrgPerson\ncn: Anna\nsn: A\nuid: anna\nmail: anna@example.com\n\
    userPassword: right\n\n\
    dn: uid=bob,dc=example\nobjectClass: inetOrgPerson\ncn: Bob\nsn: B\nuid: bob\nuserPassword: bobs\n";

impl Ldap {
    fn start(cluster: &Cluster) -> Ldap {
        let folder = cluster.folder().display().to_string();
        signed(cluster, "ca", "ldap", "/CN=ldap", &["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        let schemas = ["core", "cosine", "inetorgperson"].map(|s| format!("include /etc/ldap/schema/{s}.schema\n"));
        let conf = format!(
            "{}allow bind_anon_dn\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {folder}/slapd.pid\n\
             TLSCertificateFile {folder}/ldap.crt\nTLSCertificateKeyFile {folder}/ldap.key\n\
             database mdb\nmaxsize 10485760\nsuffix \"dc=example\"\nrootdn \"cn=admin,dc=example\"\nrootpw boss\n\
             directory {folder}/ldap\n\
             access to attrs=userPassword by anonymous auth by * none\naccess to * by users read by anonymous auth\n",
            schemas.concat()
        );
        let conf = write_as_postgres(&cluster.folder().join("slapd.conf"), &conf, "600");
        run(as_postgres("mkdir").arg(cluster.folder().join("ldap"))).must();
        let (port, tls_port) = (free_port(), free_port());
        let urls = format!("ldap://127.0.0.1:{port}/ ldaps://127.0.0.1:{tls_port}/");
        let mut slapd = as_postgres("/usr/sbin/slapd");
        slapd.arg("-f").arg(conf).args(["-d", "0", "-h", &urls]).stderr(Stdio::null());
        let ldap = Ldap { child: slapd.spawn().expect("slapd starts"), port, tls_port };
        wait_until("slapd answers", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let people = write_as_postgres(&cluster.folder().join("people.ldif"), PEOPLE, "644");
        let url = format!("ldap://127.0.0.1:{port}");
        let mut add = as_postgres("ldapadd");
        run(add.args(["-x", "-H", &url, "-D", "cn=admin,dc=example", "-w", "boss", "-f"]).arg(people)).must();
        ldap
    }
}

fn prepared() -> (Cluster, Ldap, Config) {
    let cluster = Cluster::single();
    for user in ["anna", "bob", "carl"] {
        cluster.sql(0, "postgres", &format!("CREATE USER {user} PASSWORD 'right'"));
    }
    // The server itself asks too: it gets the password that LDAP has judged.
    let hba = "local all all trust\nhost all postgres all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    cluster.write(0, "pg_hba.conf", hba, "600");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    authority(&cluster, "ca");
    let ldap = Ldap::start(&cluster);
    let mut config = Config::of(&cluster);
    config.set("auth", "hba_file = \"hba.conf\"");
    (cluster, ldap, config)
}

#[track_caller]
fn login(pgmend: &Pgmend, user: &str, password: &str) -> Ran {
    let conninfo = format!("host=127.0.0.1 port={} user='{user}' dbname=postgres", pgmend.config.port);
    let mut command = as_postgres(bin("psql"));
    command.env("PGPASSWORD", password).args(["-XAtqw", "-d", &conninfo, "-c", "SELECT current_user"]);
    run(&mut command)
}

fn refusal(user: &str) -> String {
    format!("LDAP authentication failed for user \"{user}\"")
}

#[test]
fn an_ldap_server_judges_in_every_way_that_the_rules_know() {
    let (cluster, ldap, mut config) = prepared();
    let (plain, tls) = (ldap.port, ldap.tls_port);
    let bind = "ldapbinddn=\"cn=admin,dc=example\" ldapbindpasswd=boss";
    let ways = [
        format!("ldapserver=127.0.0.1 ldapport={plain} ldapprefix=\"uid=\" ldapsuffix=\",dc=example\""),
        format!("ldapserver=127.0.0.1 ldapport={plain} ldapbasedn=\"dc=example\" {bind}"),
        format!("ldapserver=127.0.0.1 ldapport={plain} ldapbasedn=\"dc=example\" {bind} ldapsearchattribute=uid"),
        format!("ldapurl=\"ldap://127.0.0.1:{plain}/dc=example??sub?(|(uid=$username)(mail=$username))\" {bind}"),
        // The first server does not answer; the second does.
        format!("ldapserver=\"127.0.0.9 localhost\" ldapport={plain} ldapbasedn=\"dc=example\" {bind}"),
        format!("ldapserver=localhost ldapport={plain} ldaptls=1 ldapbasedn=\"dc=example\" {bind}"),
        format!("ldapserver=localhost ldapport={tls} ldapscheme=ldaps ldapprefix=uid= ldapsuffix=\",dc=example\""),
    ];
    config.set("auth", "ldap_ca_file = \"ca.crt\"");
    for way in ways {
        write_as_postgres(&cluster.folder().join("hba.conf"), &format!("host all all all ldap {way}\n"), "600");
        let pgmend = config.start();
        assert_eq!(login(&pgmend, "anna", "right").must().out.trim(), "anna", "{way}");
        // The last two are no names: a filter that fits anna, and a place in the tree.
        for (user, password) in
            [("anna", "wrong"), ("bob", "right"), ("carl", "right"), ("ann*", "right"), ("anna,dc=example", "right")]
        {
            login(&pgmend, user, password).must_fail_saying(&refusal(user));
        }
        // An empty password would be an anonymous bind, which every server grants.
        let mut raw = crate::support::Raw::connect(pgmend.config.port);
        assert_eq!(raw.start(0, &[("user", "anna")]).message().auth(), Some(3));
        raw.say(|out| pgmend::wire::frontend::password(out, ""));
        assert_eq!(raw.message().error(), ("28000".into(), refusal("anna")), "{way}");
        assert!(!pgmend.log().contains("right"), "no password in the log");
    }
}

#[test]
fn an_ldap_server_that_is_away_or_not_believed_lets_nobody_in_and_holds_nobody_up() {
    let (cluster, ldap, mut config) = prepared();
    authority(&cluster, "other");
    let port = ldap.port;
    let rules = format!(
        "host all postgres all trust\nhost all all all ldap ldapserver=localhost ldapport={port} ldaptls=1 \
         ldapprefix=uid= ldapsuffix=\",dc=example\"\n"
    );
    write_as_postgres(&cluster.folder().join("hba.conf"), &rules, "600");
    let pgmend = config.set("auth", "ldap_ca_file = \"other.crt\"").start();
    login(&pgmend, "anna", "right").must_fail_saying(&refusal("anna"));
    assert!(pgmend.log().contains("ldap.failed"), "{}", pgmend.log());
    config.set("auth", "ldap_ca_file = \"ca.crt\"").write();
    pgmend.cli(&["reload"]).must();
    login(&pgmend, "anna", "right").must();
    drop(ldap);
    login(&pgmend, "anna", "right").must_fail_saying(&refusal("anna"));
    login(&pgmend, "postgres", "").must();
    // One that takes connections and says nothing: others are served meanwhile, and the login's own limit ends it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let rules = format!(
        "host all postgres all trust\nhost all all all ldap ldapserver=127.0.0.1 ldapport={} ldapprefix=x\n",
        silent.local_addr().expect("an address").port()
    );
    write_as_postgres(&cluster.folder().join("hba.conf"), &rules, "600");
    config.set("auth", "authentication_timeout = \"2s\"").write();
    pgmend.cli(&["reload"]).must();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| login(&pgmend, "anna", "right"));
        for _ in 0..5 {
            login(&pgmend, "postgres", "").must();
        }
        waits.join().expect("a thread").must_fail_saying("canceling authentication due to timeout");
    });
}
