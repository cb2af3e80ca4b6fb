//! Users who stand in no file: looked up at the primary, remembered for a while, and refused alike when unknown.

use crate::support::process::wait_until;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend, Ran, Raw, as_postgres, bin, run};
use std::time::{Duration, Instant};

/// A server that wants passwords, and a pgmend that knows that of `postgres` only and asks for the others.
fn asking() -> (Cluster, Config) {
    let cluster = Cluster::scram();
    write_as_postgres(&cluster.folder().join("userlist.txt"), "\"postgres\" \"postgres\"\n", "600");
    let mut config = Config::of(&cluster);
    config.set("auth", "method = \"md5\"").set("auth", "userlist_file = \"userlist.txt\"");
    config.set("auth", "auth_user = \"postgres\"").set("health", "health_check_password = \"postgres\"");
    config.user = "postgres".into();
    (cluster, config)
}

#[track_caller]
fn login(pgmend: &Pgmend, user: &str, password: &str) -> Ran {
    login_to(pgmend, "app", user, password)
}

#[track_caller]
fn login_to(pgmend: &Pgmend, database: &str, user: &str, password: &str) -> Ran {
    let conninfo = format!("host=127.0.0.1 port={} user='{user}' dbname={database}", pgmend.config.port);
    let mut command = as_postgres(bin("psql"));
    command.env("PGPASSWORD", password).args(["-XAtqw", "-d", &conninfo, "-c", "SELECT current_user"]);
    run(&mut command)
}

fn refusal(user: &str) -> String {
    format!("password authentication failed for user \"{user}\"")
}

/// Questions that the server was asked, by its own count.
fn asked(cluster: &Cluster) -> usize {
    let log = std::fs::read_to_string(cluster.folder().join("node0.log")).unwrap_or_default();
    log.lines()
        .filter(|line| line.contains("pgmend auth_query") && line.contains(" execute ") && line.contains("rolname"))
        .count()
}

fn count_questions(cluster: &Cluster) {
    cluster.sql(0, "postgres", "ALTER SYSTEM SET log_min_duration_statement = 0");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    let seen = || cluster.sql(0, "postgres", "SHOW log_min_duration_statement") == "0";
    wait_until("the server logs statements", Duration::from_secs(10), seen);
}

#[test]
fn a_query_of_ones_own_is_asked_in_the_clients_database_unless_auth_dbname_says_another() {
    let (cluster, mut config) = asking();
    cluster.sql(0, "postgres", "CREATE USER anna PASSWORD 'pw'; ");
    cluster.sql(0, "postgres", "CREATE DATABASE one");
    cluster.sql(0, "postgres", "CREATE DATABASE two");
    for (database, known) in [("one", "true"), ("two", "false")] {
        let function = format!(
            "CREATE FUNCTION public.look_up(name text, OUT u text, OUT p text) LANGUAGE sql SECURITY DEFINER \
             SET search_path = pg_catalog AS 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND {known}'"
        );
        cluster.sql(0, database, &function);
    }
    config.set("auth", "auth_query = \"SELECT u, p FROM public.look_up($1)\"");
    config.set("pool.databases.alias", "dbname = \"one\"").set("pool.databases.postgres", "pool_size = 3");
    let pgmend = config.start();
    for _ in 0..2 {
        login_to(&pgmend, "one", "anna", "pw").must();
        login_to(&pgmend, "two", "anna", "pw").must_fail_saying(&refusal("anna"));
        login_to(&pgmend, "alias", "anna", "pw").must();
    }
    login_to(&pgmend, "app", "anna", "pw").must_fail_saying("could not be asked");
    assert!(pgmend.log().contains("in app"), "the log says where it was asked");
    config.set("auth", "auth_dbname = \"one\"").write();
    pgmend.cli(&["reload"]).must();
    login_to(&pgmend, "two", "anna", "pw").must();
    login_to(&pgmend, "app", "anna", "pw").must();
}

#[test]
fn every_kind_of_secret_of_the_server_lets_in_and_opens_the_server() {
    let (cluster, mut config) = asking();
    cluster.sql(0, "postgres", "SET password_encryption = 'md5'; CREATE USER hashed PASSWORD 'pw'");
    cluster.sql(0, "postgres", "CREATE USER \"O'Neil \"\"\" PASSWORD 'pw'; CREATE ROLE nologin PASSWORD 'pw'");
    cluster.sql(0, "postgres", "CREATE USER late PASSWORD 'pw' VALID UNTIL 'yesterday'; CREATE USER without");
    let hba = "local all all trust\nhost all all 127.0.0.1/32 md5\n";
    cluster.write(0, "pg_hba.conf", hba, "600");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    for method in ["md5", "scram-sha-256", "password"] {
        config.set("auth", &format!("method = \"{method}\""));
        let pgmend = config.start();
        assert_eq!(login(&pgmend, "app", "secret").must().out.trim(), "app", "{method}");
        if method != "scram-sha-256" {
            assert_eq!(login(&pgmend, "hashed", "pw").must().out.trim(), "hashed", "{method}");
        }
        login(&pgmend, "hashed", "wrong").must_fail_saying(&refusal("hashed"));
        // A name that would break out of a statement is only a name.
        assert_eq!(login(&pgmend, "O\\'Neil \"", "pw").must().out.trim(), "O'Neil \"", "{method}");
        for user in ["nologin", "late", "without", "nobody", "x\\' OR true --"] {
            login(&pgmend, user, "pw").must_fail_saying(&refusal(&user.replace("\\'", "'")));
        }
        assert!(!pgmend.log().contains("auth_query.failed"), "{}", pgmend.log());
    }
}

#[test]
fn answers_are_remembered_and_a_failed_login_asks_again() {
    let (cluster, mut config) = asking();
    count_questions(&cluster);
    config.set("auth", "auth_query_cache_time = \"1h\"");
    let pgmend = config.start();
    for _ in 0..5 {
        login(&pgmend, "app", "secret").must();
    }
    assert_eq!(asked(&cluster), 1);
    // Known or not, each failure costs one more question.
    for (user, total) in [("app", 2), ("app", 3), ("nobody", 5), ("nobody", 6)] {
        login(&pgmend, user, "wrong").must_fail_saying(&refusal(user));
        assert_eq!(asked(&cluster), total, "{user}");
    }
    // A password that changes is right from the second login on: the first was bound to the salt that it had begun with.
    cluster.sql(0, "postgres", "ALTER USER app PASSWORD 'new'");
    login(&pgmend, "app", "new").must_fail_saying(&refusal("app"));
    login(&pgmend, "app", "new").must();
    login(&pgmend, "app", "secret").must_fail_saying(&refusal("app"));
    // In clear text the password itself is there, so that already the first login is right.
    drop(pgmend);
    let pgmend = config.set("auth", "method = \"password\"").start();
    login(&pgmend, "app", "new").must();
    cluster.sql(0, "postgres", "ALTER USER app PASSWORD 'newer'");
    login(&pgmend, "app", "newer").must();
    // A reload forgets what is remembered.
    cluster.sql(0, "postgres", "ALTER USER app NOLOGIN");
    pgmend.cli(&["reload"]).must();
    login(&pgmend, "app", "newer").must_fail_saying(&refusal("app"));
}

#[test]
fn nobody_can_put_his_own_objects_in_the_place_of_the_querys() {
    let (cluster, config) = asking();
    cluster.sql(
        0,
        "postgres",
        "CREATE TABLE public.pg_authid AS SELECT 'mallory'::name AS rolname, true AS rolcanlogin, \
         'pw'::text AS rolpassword, null::timestamptz AS rolvaliduntil; \
         ALTER DATABASE postgres SET search_path = public, pg_catalog; \
         ALTER ROLE postgres SET search_path = public, pg_catalog",
    );
    let pgmend = config.start();
    login(&pgmend, "mallory", "pw").must_fail_saying(&refusal("mallory"));
    login(&pgmend, "app", "secret").must();
}

#[test]
fn a_function_may_stand_between_pgmend_and_the_secrets() {
    let (cluster, mut config) = asking();
    cluster.sql(0, "postgres", "CREATE ROLE asker LOGIN PASSWORD 'ask'");
    cluster.sql(
        0,
        "postgres",
        "CREATE FUNCTION public.lookup(name text, OUT u text, OUT p text) LANGUAGE sql SECURITY DEFINER SET search_path \
         = pg_catalog AS 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1'; REVOKE ALL ON FUNCTION \
         public.lookup FROM public; GRANT EXECUTE ON FUNCTION public.lookup TO asker",
    );
    let list = "\"postgres\" \"postgres\"\n\"asker\" \"ask\"\n";
    write_as_postgres(&cluster.folder().join("userlist.txt"), list, "600");
    config.set("auth", "auth_user = \"asker\"");
    // Without the function it may not: a failure of the daemon, the same for every name.
    let pgmend = config.start();
    for user in ["app", "nobody"] {
        login(&pgmend, user, "secret").must_fail_saying("could not be asked who may log in (auth_query)");
    }
    assert!(pgmend.log().contains("permission denied for table pg_authid"), "{}", pgmend.log());
    login(&pgmend, "postgres", "postgres").must();
    config.set("auth", "auth_query = \"SELECT u, p FROM public.lookup($1)\"");
    config.set("auth", "auth_dbname = \"postgres\"").write();
    pgmend.cli(&["reload"]).must();
    login(&pgmend, "app", "secret").must();
    login(&pgmend, "nobody", "secret").must_fail_saying(&refusal("nobody"));
    // Its connections are its own, and no client's.
    let own =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgmend auth_query' AND usename = 'asker'";
    let count: u32 = cluster.sql(0, "postgres", own).parse().expect("a number");
    assert!((1..=4).contains(&count), "{count}");
}

#[test]
fn the_unknown_are_asked_what_the_known_are_asked() {
    let (cluster, mut config) = asking();
    for (kind, code) in [("md5", 5), ("scram-sha-256", 10)] {
        cluster.sql(0, "postgres", &format!("SET password_encryption = '{kind}'; ALTER USER app PASSWORD 'secret'"));
        cluster.sql(0, "postgres", "ALTER USER postgres PASSWORD NULL");
        // As the server alone knows users, so do the doubles look.
        write_as_postgres(&cluster.folder().join("userlist.txt"), "", "600");
        let hba = "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 md5\n";
        cluster.write(0, "pg_hba.conf", hba, "600");
        cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
        let pgmend = config.set("auth", "method = \"md5\"").start();
        // From the first one on: nobody has logged in yet.
        for user in ["nobody", "app", "somebody"] {
            let mut raw = Raw::connect(pgmend.config.port);
            let asked = raw.start(0, &[("user", user), ("database", "app")]).message().auth();
            assert_eq!(asked, Some(code), "{user} {kind}");
        }
    }
}

#[test]
fn logins_wait_for_a_primary_and_many_at_once_share_few_connections() {
    let (cluster, mut config) = asking();
    config.set("auth", "authentication_timeout = \"30s\"").set("auth", "auth_query_cache_time = 0");
    cluster.sql(0, "postgres", "CREATE USER many PASSWORD 'pw'");
    let pgmend = config.start();
    login(&pgmend, "app", "secret").must();
    let clients = |count: usize| -> Vec<std::process::Child> {
        let conninfo = format!("host=127.0.0.1 port={} user=many dbname=app", pgmend.config.port);
        let spawn = |_| {
            let mut command = as_postgres(bin("psql"));
            command.env("PGPASSWORD", "pw").args(["-XAtqw", "-d", &conninfo, "-c", "SELECT 1"]);
            command.stdout(std::process::Stdio::null()).spawn().expect("psql starts")
        };
        (0..count).map(spawn).collect()
    };
    for mut client in clients(20) {
        assert!(client.wait().expect("psql ends").success());
    }
    let own = "SELECT count(*) <= 4 FROM pg_stat_activity WHERE application_name = 'pgmend auth_query'";
    assert_eq!(cluster.sql(0, "postgres", own), "t");
    cluster.stop(0);
    pgmend.wait_node(0, "down");
    let mut waiting = clients(3);
    let begun = Instant::now();
    cluster.start(0);
    for client in &mut waiting {
        assert!(client.wait().expect("psql ends").success(), "it waited {:?}", begun.elapsed());
    }
}

#[test]
fn rules_may_name_roles_and_their_members_come_and_go() {
    let (cluster, mut config) = asking();
    cluster.sql(
        0,
        "postgres",
        "CREATE ROLE staff; CREATE ROLE boss IN ROLE staff; CREATE USER anna PASSWORD 'pw' IN ROLE boss",
    );
    cluster.sql(0, "postgres", "CREATE USER bob PASSWORD 'pw'; CREATE ROLE app_role");
    let rules = "local all all trust\nhost all +staff all scram-sha-256\nhost all postgres all scram-sha-256\n";
    write_as_postgres(&cluster.folder().join("hba.conf"), rules, "600");
    config.set("auth", "hba_file = \"hba.conf\"").set("auth", "auth_query_cache_time = 0");
    let pgmend = config.start();
    login(&pgmend, "anna", "pw").must();
    login(&pgmend, "bob", "pw").must_fail_saying("no pg_hba.conf entry");
    // A superuser is a member of what he was made a member of, not of everything.
    login(&pgmend, "postgres", "postgres").must();
    cluster.sql(0, "postgres", "GRANT staff TO bob; REVOKE boss FROM anna");
    login(&pgmend, "bob", "pw").must();
    login(&pgmend, "anna", "pw").must_fail_saying("no pg_hba.conf entry");
    // Without somebody to ask as, such rules are refused.
    config.set("auth", "auth_user = \"\"").write();
    pgmend.cli(&["reload"]).must_fail_saying("set auth_user");
    login(&pgmend, "bob", "pw").must();
    // Who comes under an earlier rule is let in also while nobody can be asked, and waits for a server only then.
    config.set("auth", "auth_user = \"postgres\"").set("auth", "authentication_timeout = \"2s\"");
    config.set("pool", "query_wait_timeout = \"3s\"").write();
    pgmend.cli(&["reload"]).must();
    cluster.stop(0);
    pgmend.wait_node(0, "down");
    login(&pgmend, "bob", "pw").must_fail_saying("canceling authentication due to timeout");
    let at = format!("host={} port={} user=bob dbname=app", cluster.folder().display(), pgmend.config.port);
    let local = run(as_postgres(bin("psql")).args(["-XAtqw", "-d", &at, "-c", "SELECT 1"]));
    local.must_fail_saying("no primary server could be reached");
}
