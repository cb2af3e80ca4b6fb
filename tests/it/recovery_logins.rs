//! Recoveries with passwords: plain, `TEXT` and `AES` for each of the two logins; wrong ones and hashes are told.

use crate::recovery::assert_whole;
use crate::support::process::wait_until;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend};
use pgmend::auth::encrypt_aes;
use pgmend::base::Secret;
use std::time::Duration;

const HBA: &str = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n\
    host replication all 127.0.0.1/32 scram-sha-256\n";

fn reload(pgmend: &Pgmend, config: &Config) {
    config.write();
    let reloads = || pgmend.log().matches("config.reloaded").count();
    let before = reloads();
    crate::support::process::signal(pgmend.pid(), "-HUP");
    wait_until("the reload is done", Duration::from_secs(10), || reloads() > before);
}

#[test]
fn both_logins_work_by_scram_however_their_passwords_are_written() {
    let mut cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    cluster.sql(0, "postgres", "ALTER USER postgres PASSWORD 'health'");
    cluster.sql(0, "postgres", "CREATE ROLE rec SUPERUSER LOGIN PASSWORD 'it''s a \\ secret'");
    cluster.sql(0, "postgres", "CREATE ROLE rep REPLICATION LOGIN PASSWORD 'another = ''one'''");
    cluster.write(0, "pg_hba.conf", HBA, "600");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    cluster.add_empty_node();
    let aes = |password: &str| format!("AES{}", encrypt_aes(&Secret::new(password), "the key").expect("encrypts"));
    write_as_postgres(&cluster.folder().join("key"), "the key\n", "600");
    let mut config = Config::of(&cluster);
    config.set("auth", "key_file = \"key\"").set("health", "health_check_password = \"TEXThealth\"");
    config.set("recovery", "recovery_user = \"rec\"").set("recovery", "replication_user = \"rep\"");
    config.set("recovery", "recovery_password = 'wrong'").set("recovery", "replication_password = 'wrong'");
    let pgmend = config.spawn();
    pgmend.wait_node(1, "down");
    pgmend.wait_node(0, "up");
    pgmend.cli(&["recover", "1"]).must_fail_saying("password authentication failed for user \"rec\"");

    // Only md5 hashes are known: nobody can log in with them, and Pgpool-II says it like this.
    let md5 = "rec:md56ac8f0bd6b0e0a4d3b7a8e4a5d8c1234\nrep:md56ac8f0bd6b0e0a4d3b7a8e4a5d8c1234\n";
    write_as_postgres(&cluster.folder().join("pool_passwd"), md5, "600");
    config.set("auth", "pool_passwd_file = \"pool_passwd\"").set("recovery", "recovery_password = ''");
    reload(&pgmend, &config);
    let ran = pgmend.cli(&["recover", "1"]).must_fail_saying("the password of recovery_user rec is invalid format");
    assert!(ran.all().contains("is not allowed to be md5 hashed format"), "{}", ran.all());

    config.set("recovery", r#"recovery_password = "TEXTit's a \\ secret""#);
    reload(&pgmend, &config);
    pgmend.cli(&["recover", "1"]).must_fail_saying("password authentication failed for user \"rep\"");

    config.set("recovery", "replication_password = \"another = 'one'\"");
    reload(&pgmend, &config);
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);

    pgmend.loses(&cluster, 1);
    config.set("recovery", &format!("recovery_password = '{}'", aes("it's a \\ secret")));
    config.set("recovery", &format!("replication_password = '{}'", aes("another = 'one'")));
    reload(&pgmend, &config);
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);

    // A hash in the file itself is a mistake in the file.
    config.set("recovery", "recovery_password = 'md56ac8f0bd6b0e0a4d3b7a8e4a5d8c1234'");
    config.write();
    pgmend
        .cli(&["check", &cluster.folder().join("pgmend.toml").display().to_string()])
        .must_fail_saying("recovery.recovery_password: expected a plain, TEXT or AES password, found a hash");
}
