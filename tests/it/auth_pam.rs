//! Passwords judged by the system's PAM, by a service of the story's own.

use crate::support::process::{is_alive, signal, wait_until};
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend, Ran, Raw, as_postgres, bin, run};
use std::path::PathBuf;
use std::time::Duration;

/// A file in PAM's folder, for as long as it is held.
struct Service {
    name: String,
    folder: PathBuf,
}

impl Service {
    /// Judges by a script that knows anna (right), late (whose account has expired), slow (who never hears) and crash (who
    /// takes the judge down). It notes what it is told.
    fn new(cluster: &Cluster) -> Service {
        let folder = cluster.folder().to_owned();
        let at = folder.display();
        let script = format!(
            "#!/bin/sh\necho \"$PAM_TYPE $PAM_USER $PAM_RHOST\" >>{at}/asked\n\
             [ \"$PAM_TYPE\" = account ] && {{ [ \"$PAM_USER\" != late ]; exit; }}\n\
             password=$(tr -d '\\000')\n\
             case $PAM_USER in\n\
             slow) echo $PPID >{at}/judge.new; echo $$ >{at}/program; mv {at}/judge.new {at}/judge; exec sleep 600;;\n\
             crash) kill -9 $PPID;;\n\
             anna|late) [ \"$password\" = right ];;\n\
             *) exit 1;;\n\
             esac\n"
        );
        let script = write_as_postgres(&folder.join("judge.sh"), &script, "755");
        let name = format!("pgmend-story-{}", std::process::id());
        let rules = ["auth required pam_exec.so expose_authtok quiet", "account required pam_exec.so quiet"];
        let rules = rules.map(|rule| format!("{rule} {}\n", script.display())).concat();
        std::fs::write(format!("/etc/pam.d/{name}"), rules).expect("stories run as root");
        Service { name, folder }
    }

    fn asked(&self) -> String {
        std::fs::read_to_string(self.folder.join("asked")).unwrap_or_default()
    }

    /// The process that asks for `slow`, once it is at it.
    fn judge(&self) -> u32 {
        let number = |name: &str| std::fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok();
        wait_until("PAM is asked", Duration::from_secs(20), || number("judge").is_some());
        let judge = number("judge").expect("a number");
        std::fs::remove_file(self.folder.join("judge")).expect("the script has written it");
        judge
    }

    /// Ends the program that `slow` waits for: its module has put it into a session of its own, where it is nobody's to end.
    fn end_program(&self) {
        if let Some(pid) = std::fs::read_to_string(self.folder.join("program")).ok().and_then(|t| t.trim().parse().ok())
        {
            signal(pid, "-KILL");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end_program();
        let _ = std::fs::remove_file(format!("/etc/pam.d/{}", self.name));
    }
}

fn prepared() -> (Cluster, Service, Config) {
    let cluster = Cluster::single();
    for user in ["anna", "late", "slow", "crash", "carl"] {
        cluster.sql(0, "postgres", &format!("CREATE USER {user} PASSWORD 'right'"));
    }
    // The server itself asks too: it gets the password that PAM has judged.
    let hba = "local all all trust\nhost all postgres all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    cluster.write(0, "pg_hba.conf", hba, "600");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    let service = Service::new(&cluster);
    let mut config = Config::of(&cluster);
    config.set("auth", "hba_file = \"hba.conf\"");
    rules(&cluster, &format!("pam pamservice={}", service.name));
    (cluster, service, config)
}

fn rules(cluster: &Cluster, method: &str) {
    let text = format!("host all postgres all trust\nhost all all all {method}\nlocal all all {method}\n");
    write_as_postgres(&cluster.folder().join("hba.conf"), &text, "600");
}

#[track_caller]
fn login_at(pgmend: &Pgmend, host: &str, user: &str, password: &str) -> Ran {
    let conninfo = format!("host={host} port={} user='{user}' dbname=postgres", pgmend.config.port);
    let mut command = as_postgres(bin("psql"));
    command.env("PGPASSWORD", password).args(["-XAtqw", "-d", &conninfo, "-c", "SELECT current_user"]);
    run(&mut command)
}

#[track_caller]
fn login(pgmend: &Pgmend, user: &str, password: &str) -> Ran {
    login_at(pgmend, "127.0.0.1", user, password)
}

fn refusal(user: &str) -> String {
    format!("PAM authentication failed for user \"{user}\"")
}

/// A client that has sent its password and waits.
fn asks(pgmend: &Pgmend, user: &str, password: &str) -> Raw {
    let mut raw = Raw::connect(pgmend.config.port);
    assert_eq!(raw.start(0, &[("user", user)]).message().auth(), Some(3));
    raw.say(|out| pgmend::wire::frontend::password(out, password));
    raw
}

#[test]
fn pam_judges_the_password_and_then_the_account() {
    let (cluster, service, mut config) = prepared();
    let pgmend = config.start();
    assert_eq!(login(&pgmend, "anna", "right").must().out.trim(), "anna");
    assert_eq!(service.asked(), "auth anna 127.0.0.1\naccount anna 127.0.0.1\n");
    // A right password of an account that is none any more, a wrong one, somebody whom PAM does not know.
    for (user, password) in [("late", "right"), ("anna", "wrong"), ("carl", "right"), ("anna", " right")] {
        login(&pgmend, user, password).must_fail_saying(&refusal(user));
    }
    assert!(pgmend.log().contains("pam.refused"), "{}", pgmend.log());
    // PostgreSQL asks nobody about an empty password either.
    let asked = service.asked();
    let told = asks(&pgmend, "anna", "").message().error();
    assert_eq!((told, service.asked()), (("28000".into(), refusal("anna")), asked));
    assert!(!pgmend.log().contains("right"), "no password in the log");
    // A module that takes its process down takes nobody else with it, and lets nobody in.
    login(&pgmend, "crash", "right").must_fail_saying(&refusal("crash"));
    assert!(pgmend.log().contains("pam.failed"), "{}", pgmend.log());
    login(&pgmend, "anna", "right").must();
    // By a socket there is no host; by name there is another one.
    rules(&cluster, &format!("pam pamservice={} pam_use_hostname=1", service.name));
    pgmend.cli(&["reload"]).must();
    std::fs::remove_file(cluster.folder().join("asked")).expect("it was asked");
    login_at(&pgmend, &cluster.folder().display().to_string(), "anna", "right").must();
    assert_eq!(service.asked(), "auth anna \naccount anna \n");
    login(&pgmend, "anna", "right").must();
    assert!(service.asked().contains("account anna localhost\n"), "{}", service.asked());
    // One method for everybody, as PgBouncer has it, by a service that the configuration names.
    config.set("auth", "method = \"pam\"").set("auth", &format!("pam_service = \"{}\"", service.name));
    rules(&cluster, "reject");
    let text = config.text().replace("hba_file = \"hba.conf\"\n", "");
    drop(pgmend);
    let pgmend = config.spawn_with(&text);
    pgmend.wait_ready();
    assert_eq!(login(&pgmend, "anna", "right").must().out.trim(), "anna");
    login(&pgmend, "anna", "wrong").must_fail_saying(&refusal("anna"));
    // A service of no file is nobody's.
    let text = text.replace(&service.name, "pgmend-no-such-service");
    drop(pgmend);
    let pgmend = config.spawn_with(&text);
    pgmend.wait_ready();
    login(&pgmend, "anna", "right").must_fail_saying(&refusal("anna"));
}

#[test]
fn a_module_that_hangs_holds_nobody_up_and_is_ended_with_its_login() {
    let (_cluster, service, mut config) = prepared();
    let ends = |judge: u32| wait_until("the judge has ended", Duration::from_secs(20), || !is_alive(judge));
    let pgmend = config.set("auth", "authentication_timeout = \"2s\"").start();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| login(&pgmend, "slow", "right"));
        let judge = service.judge();
        for _ in 0..5 {
            login(&pgmend, "anna", "right").must();
        }
        waits.join().expect("a thread").must_fail_saying("canceling authentication due to timeout");
        ends(judge);
        service.end_program();
    });
    // A client that leaves.
    config.set("auth", "authentication_timeout = \"10min\"").write();
    pgmend.cli(&["reload"]).must();
    let client = asks(&pgmend, "slow", "right");
    let judge = service.judge();
    assert!(is_alive(judge));
    drop(client);
    ends(judge);
    service.end_program();
    // A daemon that is killed.
    let _client = asks(&pgmend, "slow", "right");
    let judge = service.judge();
    pgmend.kill9();
    ends(judge);
}
