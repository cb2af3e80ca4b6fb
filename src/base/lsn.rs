//! A position in the write-ahead log, printed as PostgreSQL prints it (`16/B374D848`).

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Byte position in the write-ahead log (`pg_lsn`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

/// The text was not `hex/hex` with at most eight digits a side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a log position such as 16/B374D848")]
pub struct LsnError;

impl FromStr for Lsn {
    type Err = LsnError;
    fn from_str(text: &str) -> Result<Self, LsnError> {
        let (high, low) = text.trim().split_once('/').ok_or(LsnError)?;
        let part = |s: &str| u32::from_str_radix(s, 16).map_err(|_| LsnError);
        Ok(Lsn(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_as_postgresql_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert!("16".parse::<Lsn>().is_err());
        assert!("1/123456789".parse::<Lsn>().is_err());
    }
}
