//! Authorities, certificates and revocation lists, made by openssl in a story's folder.

use super::{Cluster, as_postgres, run};

/// Runs openssl in the cluster's folder.
#[track_caller]
pub fn openssl(cluster: &Cluster, args: &[&str]) {
    run(as_postgres("openssl").current_dir(cluster.folder()).args(args)).must();
}

/// `<name>.crt` and `<name>.key` of an authority.
pub fn authority(cluster: &Cluster, name: &str) {
    let (key, crt, subject) = (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
    openssl(cluster, &[&NEW[..], &["-days", "2", "-subj", &subject, "-keyout", &key, "-out", &crt]].concat());
}

const NEW: [&str; 7] = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

/// `<file>.crt` and `<file>.key` with a subject, signed by the authority `ca`; `more` are further arguments.
pub fn signed(cluster: &Cluster, ca: &str, file: &str, subject: &str, more: &[&str]) {
    let (ca_crt, ca_key, key, crt) =
        (format!("{ca}.crt"), format!("{ca}.key"), format!("{file}.key"), format!("{file}.crt"));
    let args = ["-CA", &ca_crt, "-CAkey", &ca_key, "-addext", "basicConstraints=critical,CA:FALSE", "-subj", subject];
    let days: &[&str] = if more.contains(&"-days") { &[] } else { &["-days", "2"] };
    openssl(cluster, &[&NEW[..], days, &args, &["-keyout", &key, "-out", &crt], more].concat());
}

/// `<name>.crl`: the authority's list of revoked certificates, with these on it.
pub fn revoke(cluster: &Cluster, ca: &str, revoked: &[&str]) {
    let folder = cluster.folder();
    let conf = format!(
        "[ca]\ndefault_ca=d\n[d]\ndatabase={ca}.index\ncrlnumber={ca}.number\ndefault_md=sha256\ndefault_crl_days=2\n\
         certificate={ca}.crt\nprivate_key={ca}.key\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid\n"
    );
    super::scratch::write_as_postgres(&folder.join(format!("{ca}.cnf")), &conf, "644");
    super::scratch::write_as_postgres(&folder.join(format!("{ca}.index")), "", "644");
    super::scratch::write_as_postgres(&folder.join(format!("{ca}.number")), "01\n", "644");
    let conf = format!("{ca}.cnf");
    for name in revoked {
        openssl(cluster, &["ca", "-config", &conf, "-revoke", &format!("{name}.crt")]);
    }
    openssl(cluster, &["ca", "-config", &conf, "-gencrl", "-out", &format!("{ca}.crl")]);
}
