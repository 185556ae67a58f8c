//! What a guest finds when it starts: the start info page of a PV guest (`xen.h`), and what a PVH
//! guest finds in its place (`arch-x86/hvm/start_info.h`).

use crate::Port;
use crate::abi::{Header, Target, constants, enumeration, flags, layout};

constants! { LIMITS:
    /// The length of a PV guest's command line, its final zero included.
    pub const MAX_GUEST_CMDLINE: usize = 1024 => "MAX_GUEST_CMDLINE";
}

flags! {
    /// What kind of guest it is, and what the fields mean.
    pub struct StartFlags: u32 {
        /// It may do what only domain 0 and its like may.
        const PRIVILEGED = 1 << 0 => "SIF_PRIVILEGED";
        /// It is domain 0.
        const INITDOMAIN = 1 << 1 => "SIF_INITDOMAIN";
        /// The module is a package of several ([`MultibootModule`]).
        const MULTIBOOT_MOD = 1 << 2 => "SIF_MULTIBOOT_MOD";
        /// `mod_start` is a frame number, not an address.
        const MOD_START_PFN = 1 << 3 => "SIF_MOD_START_PFN";
        /// The toolstack understands the frame table as one plain array.
        const VIRT_P2M_4TOOLS = 1 << 4 => "SIF_VIRT_P2M_4TOOLS";
        /// Options of power management.
        const PM_MASK = 0xFF << 8 => "SIF_PM_MASK";
    }
}

layout! {
    /// The start info page of a PV guest.
    pub struct StartInfo = "struct start_info", 1168 {
        /// `xen-<version>-<platform>`, ended by zero.
        0 magic: [u8; 32],
        /// The domain's memory in pages.
        32 nr_pages: u64,
        /// The machine address of its [`SharedInfo`](crate::shared_info::SharedInfo).
        40 shared_info: u64,
        /// What kind of guest.
        48 flags: StartFlags,
        /// Zero.
        52 _pad: u32 = ours,
        /// The machine frame of the page shared with xenstore.
        56 store_mfn: u64,
        /// And its event channel.
        64 store_evtchn: Port,
        /// Zero.
        68 _pad2: u32 = ours,
        /// The console; in domain 0 a [`Dom0Console`].
        72 console: DomUConsole = "console",
        /// The virtual address of the page tables' root.
        88 pt_base: u64,
        /// How many frames the page tables take.
        96 nr_pt_frames: u64,
        /// The virtual address of the table from pseudo-physical to machine frames.
        104 mfn_list: u64,
        /// Where the module (the initial RAM disk) is.
        112 mod_start: u64,
        /// Its length in bytes.
        120 mod_len: u64,
        /// The command line, ended by zero.
        128 cmd_line: [u8; MAX_GUEST_CMDLINE],
        /// The first frame of that table.
        1152 first_p2m_pfn: u64,
        /// And how many it takes.
        1160 nr_p2m_frames: u64,
    }

    /// A guest's console.
    pub struct DomUConsole = "struct start_info" in "((struct start_info *)0)->console", 16 {
        /// The machine frame of its page.
        0 mfn: u64 = "console.domU.mfn" at 72,
        /// And its event channel.
        8 evtchn: Port = "console.domU.evtchn" at 72,
        /// Zero.
        12 _pad: u32 = ours,
    }

    /// Where domain 0 finds a description of the screen.
    pub struct Dom0Console = "struct start_info" in "((struct start_info *)0)->console", 16 {
        /// Bytes from the start of the start info.
        0 info_off: u32 = "console.dom0.info_off" at 72,
        /// Its size.
        4 info_size: u32 = "console.dom0.info_size" at 72,
        /// Zero.
        8 _pad: u64 = ours,
    }

    /// One module of several; the list ends where `mod_start` is zero.
    pub struct MultibootModule = "struct xen_multiboot_mod_list", 16 {
        /// Its first byte, counted from the start of the package.
        0 mod_start: u32,
        /// Its last byte.
        4 mod_end: u32,
        /// Its command line.
        8 cmdline: u32,
        /// Zero.
        12 _pad: u32 = "pad",
    }
}

pub(crate) const HEADER: Header = Header {
    include: "xen/xen.h",
    target: Target::X86_64,
    claims: &[
        LIMITS,
        StartFlags::CLAIMS,
        StartInfo::CLAIMS,
        DomUConsole::CLAIMS,
        Dom0Console::CLAIMS,
        MultibootModule::CLAIMS,
    ],
};

constants! { HVM_LIMITS:
    /// [`HvmStartInfo::magic`]: "xEn3", the E with its highest bit set.
    pub const HVM_START_MAGIC: u32 = 0x336e_c578 => "XEN_HVM_START_MAGIC_VALUE";
}

enumeration! {
    /// The kinds of memory in a PVH guest's map: the BIOS's.
    pub enum MemmapType: u32 {
        /// Memory.
        Ram = 1 => "XEN_HVM_MEMMAP_TYPE_RAM",
        /// Not memory.
        Reserved = 2 => "XEN_HVM_MEMMAP_TYPE_RESERVED",
        /// ACPI's tables.
        Acpi = 3 => "XEN_HVM_MEMMAP_TYPE_ACPI",
        /// Memory of ACPI's that survives sleep.
        Nvs = 4 => "XEN_HVM_MEMMAP_TYPE_NVS",
        /// Broken memory.
        Unusable = 5 => "XEN_HVM_MEMMAP_TYPE_UNUSABLE",
        /// Memory turned off.
        Disabled = 6 => "XEN_HVM_MEMMAP_TYPE_DISABLED",
        /// Memory that survives all.
        Pmem = 7 => "XEN_HVM_MEMMAP_TYPE_PMEM",
    }
}

layout! {
    /// The start info of a PVH guest.
    pub struct HvmStartInfo = "struct hvm_start_info", 56 {
        /// [`HVM_START_MAGIC`].
        0 magic: u32,
        /// 1; in version 0 there is no memory map, and the structure ends before it.
        4 version: u32,
        /// As [`StartInfo::flags`].
        8 flags: StartFlags,
        /// How many modules.
        12 nr_modules: u32,
        /// The address of their list, of [`HvmModule`]s.
        16 modlist_paddr: u64,
        /// The address of the command line, ended by zero.
        24 cmdline_paddr: u64,
        /// The address of ACPI's root pointer.
        32 rsdp_paddr: u64,
        /// The address of the memory map, of [`MemmapEntry`]s.
        40 memmap_paddr: u64,
        /// How many entries it has.
        48 memmap_entries: u32,
        /// Zero.
        52 _pad: u32 = "reserved",
    }

    /// A module (the initial RAM disk, say).
    pub struct HvmModule = "struct hvm_modlist_entry", 32 {
        /// Its address.
        0 paddr: u64,
        /// Its size in bytes.
        8 size: u64,
        /// The address of its command line, or zero.
        16 cmdline_paddr: u64,
        /// Zero.
        24 _pad: u64 = "reserved",
    }

    /// An entry of the memory map.
    pub struct MemmapEntry = "struct hvm_memmap_table_entry", 24 {
        /// The first address.
        0 addr: u64,
        /// Bytes.
        8 size: u64,
        /// A [`MemmapType`].
        16 memory: u32 = "type",
        /// Zero.
        20 _pad: u32 = "reserved",
    }
}

pub(crate) const HVM_HEADER: Header = Header {
    include: "xen/arch-x86/hvm/start_info.h",
    target: Target::X86_64,
    claims: &[
        HVM_LIMITS,
        MemmapType::CLAIMS,
        HvmStartInfo::CLAIMS,
        HvmModule::CLAIMS,
        MemmapEntry::CLAIMS,
    ],
};
