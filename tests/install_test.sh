#!/bin/sh
# Installs a build into an empty folder and compiles the examples outside the tree against it, with the shared and with the
# static library, and runs both.   install_test.sh SOURCE BUILD
set -eu
source=$1
build=$2
for tool in pkg-config make; do
    command -v $tool >/dev/null || { echo "skip: $tool is not installed"; exit 77; }
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fail() {
    echo "install_test: $*" >&2
    exit 1
}

dest="$dir/root folder"
DESTDIR=$dest meson install --no-rebuild --quiet -C "$build" >"$dir/log" 2>&1 || { cat "$dir/log"; fail "meson install failed"; }
pc=$(find "$dest" -name yoke.pc)
[ -n "$pc" ] || fail "no yoke.pc was installed"
libdir=$(dirname "$(dirname "$pc")")
bin=$(find "$dest" -type f -path '*/bin/yoke')
[ -n "$bin" ] || fail "no program was installed"
(cd / && LD_LIBRARY_PATH="$libdir" "$bin" run -q -n 4 --temp 0) | grep -q . || fail "the installed program does not find its model"
find "$dest" -name '*.so*' -o -name '*.a' -o -name '*.h' -o -path '*/bin/*' | sed "s|^$dest||"

# The example, copied away from the tree. DESTDIR stands for what the package would put in place: a link without space leads there,
# because neither pkg-config nor make can pass on such a name.
ln -s "$dest" "$dir/sys"
mkdir "$dir/example"
cp "$source/examples/generate.c" "$source/examples/plan.c" "$source/examples/Makefile" "$dir/example"
cd "$dir/example"
export PKG_CONFIG_PATH="$dir/sys${libdir#"$dest"}/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$dir/sys"
model=$source/models/yoke-tiny-mixtral-q4_k_m.gguf
version=$(pkg-config --modversion yoke)

run() { # run KIND [make arguments]
    kind=$1
    shift
    make -s clean
    make -s CFLAGS="-O1 -Wall -Wextra -Werror" "$@" || fail "$kind: the example does not compile"
    env LD_LIBRARY_PATH="$libdir" ./generate "$model" "Once upon a time" 24 >text 2>err || { cat err; fail "$kind: the example failed"; }
    [ "$(wc -c <text)" -gt 20 ] || fail "$kind: no text: $(cat text)"
    echo "$kind: Once upon a time$(cat text)"
    # The planner from a host program: with OpenCL there are three kinds of slices to see, without it there is the CPU.
    if [ -f "$libdir/yoke/yoke-opencl.so" ] && env LD_LIBRARY_PATH="$libdir" YOKE_MODULE_PATH="$libdir/yoke" "$bin" devices 2>/dev/null | grep -q "opencl:0"; then
        set -- opencl:0 3000000
    else
        set -- cpu
    fi
    env LD_LIBRARY_PATH="$libdir" YOKE_MODULE_PATH="$libdir/yoke" XDG_CACHE_HOME="$dir" ./plan "$model" "$@" >text 2>err || { cat err; fail "$kind: plan failed"; }
    grep -q "^layers" text || fail "$kind: plan explains nothing: $(cat text)"
    [ "$1" = cpu ] || grep -q "^[0-9].*>" text || fail "$kind: no slice is copied to the device: $(cat text)"
    if env LD_LIBRARY_PATH="$libdir" ./generate "$dir/absent.gguf" x >text 2>err; then
        fail "$kind: a missing model was not reported"
    fi
    grep -q absent.gguf err || fail "$kind: the message does not name the file: $(cat err)"
}
run shared
readelf -d generate | grep -q 'NEEDED.*libyoke' || fail "the shared example does not use libyoke.so"
run static STATIC=1
readelf -d generate | grep -q 'NEEDED.*libyoke' && fail "the static example still needs libyoke.so"

# The installed program starts from its new place.
env LD_LIBRARY_PATH="$libdir" "$bin" --version >text || fail "the installed program does not start"
grep -q "$version" text || fail "yoke --version says $(cat text), yoke.pc $version"
echo "install: ok, version $version"
