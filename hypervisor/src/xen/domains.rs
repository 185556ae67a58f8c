//! `/dev/xen/privcmd`: what Xen says of the domains of the host.

#![allow(unsafe_code, reason = "a hypercall takes the address of its argument")]

use std::io;
use std::sync::Mutex;

use parapet_xen_sys::DomId;
use parapet_xen_sys::domctl::{DomainFlags, DomainInfo};
use parapet_xen_sys::hypercall::Hypercall;
use parapet_xen_sys::linux::privcmd::{self, HYPERCALL};
use parapet_xen_sys::sysctl::{GETDOMAININFOLIST, GetDomainInfoList, INTERFACE_VERSIONS, Sysctl};
use zerocopy::IntoBytes;

use super::NotReady;
use super::device::{self, Area, Device};
use crate::seam::Access;
use crate::wait::lock;

/// Where in the page the argument is, and where the answer.
const ARGUMENT: usize = 0;
const ANSWER: usize = 512;
const _: () = assert!(ARGUMENT + size_of::<Sysctl>() <= ANSWER);
const _: () = assert!(ANSWER + size_of::<DomainInfo>() <= crate::memory::PAGE_SIZE);

/// The domains of the host, as only a privileged domain may ask for them.
pub struct Domains {
    privcmd: Device,
    /// Memory that stays where it is during a hypercall; whose turn it is with it.
    page: Mutex<Area>,
    /// The version of sysctl that this Xen speaks.
    version: u32,
}

impl Domains {
    /// Opens the way to Xen.
    ///
    /// # Errors
    /// What is missing on this host, with what to do about it.
    pub fn open() -> Result<Self, NotReady> {
        let privcmd = device::PRIVCMD.open_checked()?;
        let buffers = device::HYPERCALL.open_checked()?;
        let failed = |what: &str| {
            let what = what.into();
            |error| NotReady::Host { what, error }
        };
        let page = Area::of_device(&buffers, 0, 1, Access::ReadWrite);
        let page = page.map_err(failed("/dev/xen/hypercall"))?;
        let mut domains = Domains {
            privcmd,
            page: Mutex::new(page),
            version: 0,
        };
        for version in INTERFACE_VERSIONS {
            domains.version = version;
            match domains.flags(DomId::ZERO) {
                Ok(_) => return Ok(domains),
                // It is another version's Xen.
                Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                    return Err(NotReady::NotPrivileged);
                }
                Err(error) => return Err(failed("what Xen tells of domains")(error)),
            }
        }
        Err(NotReady::UnknownXen)
    }

    /// What a domain does; none if there is no such domain.
    ///
    /// # Errors
    /// Xen's, or the host's.
    pub fn flags(&self, domid: DomId) -> io::Result<Option<DomainFlags>> {
        let page = lock(&self.page);
        let memory = page.view_mut().ok_or(io::ErrorKind::PermissionDenied)?;
        let outside = |_| io::Error::from(io::ErrorKind::InvalidData);
        let sysctl = Sysctl {
            cmd: GETDOMAININFOLIST,
            interface_version: self.version,
            getdomaininfolist: GetDomainInfoList {
                first_domain: domid,
                max_domains: 1,
                buffer: page.address() + ANSWER as u64,
                ..GetDomainInfoList::default()
            },
            ..Sysctl::default()
        };
        memory.write(ARGUMENT, &sysctl).map_err(outside)?;
        let mut call = privcmd::Hypercall {
            op: u32::from(Hypercall::Sysctl).into(),
            arg: [page.address() + ARGUMENT as u64, 0, 0, 0, 0],
        };
        // SAFETY: the kernel reads just `call`; Xen reads and writes the argument, and writes one
        // structure at `buffer`. Both are within the page, which is mapped and ours alone as long
        // as it is locked, and is only accessed through views.
        unsafe {
            self.privcmd
                .ioctl(HYPERCALL, call.as_mut_bytes().as_mut_ptr())
        }?;
        let told: Sysctl = memory.read(ARGUMENT).map_err(outside)?;
        if told.getdomaininfolist.num_domains == 0 {
            return Ok(None);
        }
        // The first from `domid` on, which may be a later one.
        let info: DomainInfo = memory.read(ANSWER).map_err(outside)?;
        Ok((info.domain == domid).then_some(info.flags))
    }
}

impl std::fmt::Debug for Domains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Domains(sysctl version {:#x})", self.version)
    }
}
