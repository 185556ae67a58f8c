//! Giving up what a daemon needs no more once it has begun.

use std::ffi::CString;
use std::io;

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

    /// Sees that this process can become the user, before anything is begun that must not end with
    /// an error.
    ///
    /// # Errors
    /// [`UserError::NotByRoot`].
    pub fn is_ready(&self) -> Result<(), UserError> {
        if Uid::effective().is_root() {
            Ok(())
        } else {
            Err(UserError::NotByRoot(self.user.name.clone()))
        }
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
}
