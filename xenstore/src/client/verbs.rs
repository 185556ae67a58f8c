//! What can be asked of a xenstored: said once, for every client.

/// The verbs of a client, as methods. `async`, how they take the client, and how an answer is
/// waited for are the client's own; all else is the same for all.
macro_rules! verbs {
    ($client:ident: $($async:ident)? ($($by:tt)+) $self:ident ($($wait:tt)*)) => {
        impl $client {
            /// A node's value.
            ///
            /// # Errors
            /// Any [`Error`], as with all requests.
            pub $($async)? fn read($($by)+ $self, path: &str) -> Result<Vec<u8>, Error> {
                $self.call(&Request::Read(path.as_bytes()))$($wait)*
            }

            /// Sets a node's value, and creates the node and those above it where they are missing.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn write(
                $($by)+ $self,
                path: &str,
                value: impl AsRef<[u8]>,
            ) -> Result<(), Error> {
                let (path, value) = (path.as_bytes(), value.as_ref());
                $self.call(&Request::Write { path, value })$($wait)*.map(drop)
            }

            /// Creates a node where it is missing, and those above it.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn mkdir($($by)+ $self, path: &str) -> Result<(), Error> {
                $self.call(&Request::Mkdir(path.as_bytes()))$($wait)*.map(drop)
            }

            /// Removes a node and all below it.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn remove($($by)+ $self, path: &str) -> Result<(), Error> {
                $self.call(&Request::Rm(path.as_bytes()))$($wait)*.map(drop)
            }

            /// The names of a node's children, however many, as they were at one moment: a list
            /// longer than a message comes in parts, and anew if it changes meanwhile.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn list($($by)+ $self, path: &str) -> Result<Vec<String>, Error> {
                let path = path.as_bytes();
                match $self.call(&Request::Directory(path))$($wait)* {
                    Ok(payload) => reply::names(Operation::Directory, &payload),
                    Err(error) if error.errno() == Some(Errno::E2BIG) => {
                        let mut parts = reply::Parts::default();
                        loop {
                            let offset = parts.offset();
                            let request = Request::DirectoryPart { path, offset };
                            let part = $self.call(&request)$($wait)*?;
                            if let Some(names) = parts.add(&part)? {
                                return Ok(names);
                            }
                        }
                    }
                    Err(error) => Err(error),
                }
            }

            /// A node's permissions, the owner's first.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn permissions(
                $($by)+ $self,
                path: &str,
            ) -> Result<Vec<Permission>, Error> {
                let payload = $self.call(&Request::GetPerms(path.as_bytes()))$($wait)*?;
                reply::permissions(&payload)
            }

            /// Sets a node's permissions, the owner's first.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn set_permissions(
                $($by)+ $self,
                path: &str,
                permissions: &[Permission],
            ) -> Result<(), Error> {
                let request = Request::SetPerms {
                    path: path.as_bytes(),
                    permissions: permissions.to_vec(),
                };
                $self.call(&request)$($wait)*.map(drop)
            }

            /// Drops all watches and transactions of the connection, whoever has begun them.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn reset_watches($($by)+ $self) -> Result<(), Error> {
                $self.call(&Request::ResetWatches)$($wait)*.map(drop)
            }

            /// Where a domain's own nodes are, be there such a domain or not.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn domain_path($($by)+ $self, domid: DomId) -> Result<String, Error> {
                let payload = $self.call(&Request::GetDomainPath(domid))$($wait)*?;
                reply::string(Operation::GetDomainPath, &payload)
            }

            /// Connects xenstored to a domain, whose xenstore page is its frame `gfn` and whose
            /// port for xenstored is `port`; for the privileged, as are all that follow.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn introduce(
                $($by)+ $self,
                domid: DomId,
                gfn: u64,
                port: Port,
            ) -> Result<(), Error> {
                let request = Request::Introduce { domid, gfn, port };
                $self.call(&request)$($wait)*.map(drop)
            }

            /// Says that a domain is gone.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn release($($by)+ $self, domid: DomId) -> Result<(), Error> {
                $self.call(&Request::Release(domid))$($wait)*.map(drop)
            }

            /// Whether a domain was introduced and not released.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn is_introduced($($by)+ $self, domid: DomId) -> Result<bool, Error> {
                let payload = $self.call(&Request::IsDomainIntroduced(domid))$($wait)*?;
                reply::truth(&payload)
            }

            /// Says that a domain that had shut down, to be suspended, runs again.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn resume($($by)+ $self, domid: DomId) -> Result<(), Error> {
                $self.call(&Request::Resume(domid))$($wait)*.map(drop)
            }

            /// Gives a domain all rights that `target` has.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn set_target(
                $($by)+ $self,
                domid: DomId,
                target: DomId,
            ) -> Result<(), Error> {
                let request = Request::SetTarget { domid, target };
                $self.call(&request)$($wait)*.map(drop)
            }

            /// Talks to the daemon itself: what it answers. `help` lists the commands.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn control(
                $($by)+ $self,
                command: &str,
                arguments: &[&str],
            ) -> Result<String, Error> {
                let request = Request::Control {
                    command: command.as_bytes(),
                    arguments: arguments.iter().map(|text| text.as_bytes()).collect(),
                };
                let payload = $self.call(&request)$($wait)*?;
                reply::string(Operation::Control, &payload)
            }

            /// What xenstored can do for a domain; or for who asks, if none is given, which
            /// everybody may ask. `ENOSYS` from Xen's own before 4.22, as from all that follow.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn features(
                $($by)+ $self,
                domid: Option<DomId>,
            ) -> Result<ServerFeatures, Error> {
                let payload = $self.call(&Request::GetFeature(domid))$($wait)*?;
                reply::parsed(Operation::GetFeature, &payload).map(ServerFeatures::from_bits_retain)
            }

            /// Chooses what xenstored is to do for a domain that is not introduced yet.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn set_features(
                $($by)+ $self,
                domid: DomId,
                features: ServerFeatures,
            ) -> Result<(), Error> {
                let request = Request::SetFeature { domid, features };
                $self.call(&request)$($wait)*.map(drop)
            }

            /// The names of all quotas.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn quotas($($by)+ $self) -> Result<Vec<String>, Error> {
                let payload = $self.call(&Request::ListQuotas)$($wait)*?;
                let names = reply::string(Operation::GetQuota, &payload)?;
                Ok(names.split_ascii_whitespace().map(String::from).collect())
            }

            /// The value of a quota: for a domain, or for those that are yet to come. Zero is no
            /// limit.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn quota(
                $($by)+ $self,
                domid: Option<DomId>,
                name: &str,
            ) -> Result<u32, Error> {
                let name = name.as_bytes();
                let payload = $self.call(&Request::GetQuota { domid, name })$($wait)*?;
                reply::parsed(Operation::GetQuota, &payload)
            }

            /// Sets the value of a quota: for a domain, or for those that are yet to come.
            ///
            /// # Errors
            /// Any [`Error`].
            pub $($async)? fn set_quota(
                $($by)+ $self,
                domid: Option<DomId>,
                name: &str,
                value: u32,
            ) -> Result<(), Error> {
                let name = name.as_bytes();
                let request = Request::SetQuota { domid, name, value };
                $self.call(&request)$($wait)*.map(drop)
            }
        }
    };
}

pub(super) use verbs;
