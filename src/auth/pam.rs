//! The options of the method `pam`. No library, no processes.
//!
//! <https://www.postgresql.org/docs/17/auth-pam.html>

/// A service is a file's name.
const MAX_SERVICE: usize = 255;

/// How PAM is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PamSettings {
    /// `pamservice`; `None`: the configuration's.
    pub service: Option<String>,
    /// `pam_use_hostname`: modules hear the name of the client's host in the place of its address.
    pub use_hostname: bool,
}

impl PamSettings {
    /// PostgreSQL's service.
    pub const POSTGRESQL: &'static str = "postgresql";
    /// Pgpool-II's.
    pub const PGPOOL: &'static str = "pgpool";

    /// One option of a rule.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match (name, value) {
            ("pamservice", service) if is_service(service) => self.service = Some(service.to_owned()),
            ("pamservice", other) => return Err(format!("expected the name of a PAM service, found \"{other}\"")),
            ("pam_use_hostname", "1") => self.use_hostname = true,
            ("pam_use_hostname", "0") => self.use_hostname = false,
            ("pam_use_hostname", other) => {
                return Err(format!("expected pam_use_hostname=0 or pam_use_hostname=1, found \"{other}\""));
            }
            _ => return Err(format!("option \"{name}\" is not supported")),
        }
        Ok(())
    }
}

/// Whether a text names a service: a file in PAM's folder, and no way out of it.
pub fn is_service(name: &str) -> bool {
    let harmless = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= MAX_SERVICE && !name.starts_with('.') && name.chars().all(harmless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_a_file_in_its_folder() {
        for good in ["postgresql", "pg-pool_2.x"] {
            assert!(is_service(good), "{good}");
        }
        for bad in ["", "../passwd", "a/b", "..", ".x", "a b", "a\0b"] {
            assert!(!is_service(bad), "{bad:?}");
        }
        assert!(!is_service(&"x".repeat(256)));
    }
}
