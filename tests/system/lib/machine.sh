# shellcheck shell=bash
# What this machine must have before anything is fetched.

# The tools and the Debian packages they come in. All else is taken from the fetched packages.
readonly NEEDED_TOOLS=(
    "qemu-system-x86_64 qemu-system-x86"
    "readelf binutils"
    "xz xz-utils"
    "apt-get apt"
    "dpkg dpkg"
    "flock util-linux"
)

# check_machine: ends the run, saying what is missing and how to get it.
check_machine() {
    local tool package missing=() packages=()
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        unable "this needs Linux on x86_64; this machine is $(uname -sm)"
    fi
    for tool in "${NEEDED_TOOLS[@]}"; do
        package=${tool#* }
        tool=${tool% *}
        command -v "$tool" >/dev/null && continue
        missing+=("$tool")
        packages+=("$package")
    done
    if [ "${#missing[@]}" = 0 ]; then
        [ -n "$PROGRAMS_DIR" ] || command -v cargo >/dev/null ||
            unable "cargo is not in PATH: install Rust (https://rustup.rs), or name ready programs with --programs DIR"
        return
    fi
    say "tests/system/run: this machine lacks: ${missing[*]}"
    if command -v apt-get >/dev/null; then
        say "Install with:  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}"
    else
        say "Xen, its tools and the kernels are Debian's, so apt-get and dpkg are needed: run this on Debian or in a Debian container."
    fi
    exit 2
}
