//! Keys read from the xenstore.

use parapet_xenstore::xenbus::{self, Keys};

/// Some keys of a directory, as they were when read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values(pub Vec<(String, String)>);

impl Values {
    /// Reads those of `keys` that are there.
    ///
    /// # Errors
    /// Any [`xenbus::Error`].
    pub async fn read(
        folder: &Keys,
        keys: impl Iterator<Item = &str>,
    ) -> Result<Self, xenbus::Error> {
        let mut found = Vec::new();
        for key in keys {
            if let Some(value) = folder.find(key).await? {
                found.push((key.into(), value));
            }
        }
        Ok(Values(found))
    }

    /// The value of one of them, if it was there.
    pub fn get(&self, wanted: &str) -> Option<String> {
        let found = self.0.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| value.clone())
    }
}
