//! Giving up what a daemon needs no more once it has begun.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User, getgrouplist, setgid, setgroups, setuid};

/// Gives up, for this thread and those that it starts, ever to gain privileges by what is executed.
pub fn no_new_privileges() {
    if let Err(error) = prctl::set_no_new_privs() {
        log::warn!("programs with privileges of their own can still be executed: {error}");
    }
}

/// A user that a daemon becomes.
#[derive(Debug)]
pub struct Unprivileged {
    user: User,
    groups: Vec<Gid>,
}

/// Why a daemon does not become a user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no such user.
    #[error("there is no user {0}: make one (useradd --system {0}), or leave --user out")]
    Unknown(String),
    /// It is root.
    #[error("{0} is root: name a user without privileges, or leave --user out")]
    Root(String),
    /// This process may not become anybody.
    #[error("only root can become {0}: run as root, or leave --user out")]
    NotByRoot(String),
    /// It may not do what the daemon needs.
    #[error(
        "{user} cannot open {path}, which is needed for every new domain: a udev rule can give it \
         away (KERNEL==\"{kernel}\", OWNER=\"{user}\"), or leave --user out"
    )]
    Device {
        /// The user.
        user: String,
        /// The device.
        path: String,
        /// Its name in a rule.
        kernel: String,
    },
    /// The host failed.
    #[error("this process cannot become {user}: {source}")]
    Host {
        /// The user.
        user: String,
        /// The host's reason.
        source: io::Error,
    },
}

impl Unprivileged {
    /// Looks a user up, while that is still possible.
    ///
    /// # Errors
    /// See [`UserError`].
    pub fn named(name: &str) -> Result<Self, UserError> {
        let failed = |error: nix::Error| UserError::Host {
            user: name.into(),
            source: error.into(),
        };
        let user = User::from_name(name).map_err(failed)?;
        let user = user.ok_or_else(|| UserError::Unknown(name.into()))?;
        if user.uid.is_root() {
            return Err(UserError::Root(name.into()));
        }
        let c_name = CString::new(name).map_err(|_| UserError::Unknown(name.into()))?;
        let groups = getgrouplist(&c_name, user.gid).map_err(failed)?;
        Ok(Unprivileged { user, groups })
    }

    /// Sees that this process can become the user, and that the user can open these devices:
    /// before anything is begun that must not end with an error.
    ///
    /// # Errors
    /// [`UserError::NotByRoot`], [`UserError::Device`].
    pub fn is_ready(&self, devices: &[&str]) -> Result<(), UserError> {
        if !Uid::effective().is_root() {
            return Err(UserError::NotByRoot(self.user.name.clone()));
        }
        devices.iter().try_for_each(|device| self.may_open(device))
    }

    fn may_open(&self, device: &str) -> Result<(), UserError> {
        match fs::metadata(device) {
            Ok(found) if self.may_use(found.mode(), found.uid(), found.gid()) => Ok(()),
            _ => Err(UserError::Device {
                user: self.user.name.clone(),
                path: device.into(),
                kernel: Path::new(device)
                    .strip_prefix("/dev")
                    .map_or(device.into(), |name| name.display().to_string()),
            }),
        }
    }

    /// Whether somebody's file with this mode may be read and written.
    fn may_use(&self, mode: u32, owner: u32, group: u32) -> bool {
        let bits = if Uid::from_raw(owner) == self.user.uid {
            0o600
        } else if self.groups.contains(&Gid::from_raw(group)) {
            0o060
        } else {
            0o006
        };
        mode & bits == bits
    }

    /// Becomes the user, for good and with all threads: without any of root's capabilities, and
    /// with the user's groups alone. What is open stays so.
    ///
    /// # Errors
    /// [`UserError::Host`].
    pub fn become_it(&self) -> Result<(), UserError> {
        let User { name, uid, gid, .. } = &self.user;
        // The user last: it is who may change the others.
        setgroups(&self.groups)
            .and_then(|()| setgid(*gid))
            .and_then(|()| setuid(*uid))
            .map_err(|error| UserError::Host {
                user: name.clone(),
                source: error.into(),
            })?;
        log::info!("goes on as {name}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_that_there_is_and_not_root() {
        let error = Unprivileged::named("no-such-user-here").unwrap_err();
        assert!(matches!(error, UserError::Unknown(_)), "{error}");
        let error = Unprivileged::named("root").unwrap_err();
        assert!(matches!(error, UserError::Root(_)), "{error}");
    }

    #[test]
    fn a_device_may_be_used_by_its_owner_its_group_or_everybody() {
        let user = Unprivileged::named("nobody").unwrap();
        let (own, other) = (user.user.uid.as_raw(), 0);
        let group = user.user.gid.as_raw();
        for (mode, owner, group, may) in [
            (0o600, own, 0, true),
            (0o400, own, 0, false),
            // The owner's bits are for the owner, even if others may more.
            (0o066, own, group, false),
            (0o060, other, group, true),
            (0o660, other, 0, false),
            (0o666, other, 0, true),
        ] {
            assert_eq!(user.may_use(mode, owner, group), may, "{mode:o}");
        }
        let error = user.may_open("/dev/no/device").unwrap_err().to_string();
        assert!(error.contains("KERNEL==\"no/device\""), "{error}");
        user.may_open("/dev/null").unwrap();
    }
}
