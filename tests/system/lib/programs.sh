# shellcheck shell=bash
# Our own programs, built static: domain 0's image has only the libraries that Xen's tools need.

# PACKAGE PROGRAM of each. A new program is a line here.
readonly PROGRAMS=(
    "parapet parapet-blkback"
    "parapet parapet-netback"
    "parapet parapet-xenstored"
    "parapet-tests seam-conformance"
    "parapet-tests disk-exercise"
    "parapet-tests net-exercise"
)

# Like a release, but quicker to build; and arithmetic that overflows is a failure.
readonly PROFILE=(
    --config 'profile.system.inherits="release"' --config 'profile.system.lto="off"'
    --config profile.system.codegen-units=16 --config profile.system.debug=false
    --config profile.system.overflow-checks=true --profile system
)

# build_programs: leaves the folder that domain 0 takes programs from in $PROGRAMS_DIR.
build_programs() {
    local entry package program built what=()
    if [ -n "$PROGRAMS_DIR" ]; then
        [ -d "$PROGRAMS_DIR" ] || unable "--programs: $PROGRAMS_DIR is not a folder"
        PROGRAMS_DIR=$(cd "$PROGRAMS_DIR" && pwd)
        return
    fi
    PROGRAMS_DIR=$TARGET/programs
    rm -rf "$PROGRAMS_DIR"
    mkdir -p "$PROGRAMS_DIR"
    [ "${#PROGRAMS[@]}" = 0 ] && return
    step "our programs"
    for entry in "${PROGRAMS[@]}"; do
        read -r package program <<<"$entry"
        what+=(-p "$package" --bin "$program")
    done
    # RUSTFLAGS and an explicit target: build scripts and macros stay as this machine needs them.
    (cd "$ROOT" && RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR="$TARGET" \
        cargo build --locked --target x86_64-unknown-linux-gnu "${PROFILE[@]}" "${what[@]}") >&2 ||
        unable "the programs do not build"
    for entry in "${PROGRAMS[@]}"; do
        read -r package program <<<"$entry"
        built=$TARGET/x86_64-unknown-linux-gnu/system/$program
        if readelf -l "$built" | grep -q INTERP; then
            unable "$program is not static: domain 0 could not run it"
        fi
        cp "$built" "$PROGRAMS_DIR/"
    done
}
