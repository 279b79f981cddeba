#!/usr/bin/env bash
# Builds, tests and measures the CUDA lane on a machine with a GPU that has nvcc, a C compiler, python3, meson and ninja, and nothing else.
#
#   bench/device.sh carry                    on a machine where yoke builds: libraries and headers the other one lacks, into build-carry/
#   bench/device.sh STEP...                  on the machine with the GPU, from the same tree; each step takes less than ten minutes
#
#   build                                    yoke, the CUDA module for one architecture, the tests of devices (under four minutes)
#   gpu-tests                                device, kernel, product, attention and dialect tests, hybrid plans; compute-sanitizer where it is
#   kernels                                  products, attention, launches, copies, hand-off: yoke profile, and its fits as CSV
#   mma                                      products by matrix units against those without: tests of both, fits of both as CSV, prefill of both
#   bench                                    yoke bench, everything on the device and on the CPU alone: models/ and one made here
#   model SHAPE@TYPE                         makes a model that is too large for the steps that use it to make it
#   hybrid --cell MODEL:BUDGET               yoke bench with this much device memory, beside the CPU alone. MODEL: a file, or SHAPE@TYPE of yoke synth,
#                                            which is made here: hybrid --cell llama-1b@Q4_K_M:400M
#
# Environment: OUT folder of results (build-device/out): device.log, tests.csv, kernels.csv, mma.csv, mma-bench.csv,
# machine.json, bench.csv, hybrid.csv. SM architecture (90).
# SYNTH model that `bench` makes (llama-1b@Q4_K_M). Steps stand alone: one that failed is named again. Exit 1 when one fails.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
build=build-device carry=build-carry out=${OUT:-build-device/out} sm=${SM:-90} synth=${SYNTH:-llama-1b@Q4_K_M}
mkdir -p "$out" "$build/models" "$build/cache" || exit 1
out=$(cd "$out" && pwd)
log=$out/device.log
export XDG_CACHE_HOME=$root/$build/cache
yoke=$build/src/cli/yoke

say() {
    echo "device.sh: $*" | tee -a "$log" >&2
}

die() {
    say "$*"
    exit 1
}

# run SECONDS COMMAND...: its output goes to the log.
run() {
    local limit=$1
    shift
    echo "+ $*" >>"$log"
    timeout -k 10 "$limit" "$@" >>"$log" 2>&1 </dev/null
}

# Libraries from build-carry/, where a machine has none of its own.
use_carried() {
    if [ -d "$carry/lib" ]; then
        export CPATH=$root/$carry/include${CPATH:+:$CPATH} LIBRARY_PATH=$root/$carry/lib${LIBRARY_PATH:+:$LIBRARY_PATH}
        export LD_LIBRARY_PATH=$root/$carry/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    fi
}

need_gpu() {
    local line
    [ -x "$yoke" ] || die "$1: nothing is built yet: bench/device.sh build"
    line=$("$yoke" devices 2>>"$log" | grep -A 2 '^cuda')
    case "$line" in
        cuda:0*) echo "$line" >>"$log" ;;
        *) die "$1 needs a GPU: ${line%%$'\n'*}" ;;
    esac
}

# model NAME: the path of a file, made when it is SHAPE@TYPE.
model() {
    local file=$build/models/$1.gguf
    if [ -f "$1" ]; then
        echo "$1"
        return 0
    fi
    case "$1" in
        *@*) ;;
        *) die "$1 is neither a file nor SHAPE@TYPE (yoke synth --list)" ;;
    esac
    if [ ! -f "$file" ]; then
        run "${2:-180}" "$yoke" synth "${1%@*}" "${1#*@}" -o "$file" ||
            die "model $1 was not made here (too large? the step \"model $1\" takes more time): $log"
    fi
    echo "$file"
}

# Folders of headers and libraries by name, with what the libraries need themselves, but for the C library.
do_carry() {
    local h lib path need
    rm -rf "$carry"
    mkdir -p "$carry/include" "$carry/lib"
    for h in hwloc.h hwloc jansson.h jansson_config.h pcre2.h cmocka.h cmocka_version.h cmocka_pbc.h; do
        path=$(find /usr/include /usr/local/include -maxdepth 3 -path "*/$h" -print -quit 2>/dev/null)
        [ -n "$path" ] && cp -rL "$path" "$carry/include/"
    done
    for lib in hwloc pcre2-8 jansson cmocka; do
        path=$(cc -print-file-name="lib$lib.so")
        [ -f "$path" ] || die "carry: lib$lib.so is not installed here (its development package)"
        cp -L "$path" "$carry/lib/lib$lib.so"
        need=$(readelf -d "$path" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
        ln -f "$carry/lib/lib$lib.so" "$carry/lib/$need"
        ldd "$path" | sed -n 's|.*=> \(/[^ ]*\) .*|\1|p' | grep -vE '/(libc|libm|libdl|libpthread|librt)\.so' | while read -r need; do
            cp -L "$need" "$carry/lib/"
        done
    done
    for h in hwloc.h jansson.h pcre2.h cmocka.h; do
        [ -f "$carry/include/$h" ] || die "carry: $h is not installed here"
    done
    say "carry: $(du -sh "$carry" | cut -f1) in $carry"
}

do_build() {
    local started=$SECONDS tests=(device kernels matvec attention dialect) targets=(src/cli/yoke gpu/yoke-cuda.so gpu/yoke-null.so tests/yoke-cuda.so) t again=()
    command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || die "build: nvcc is not there"
    [ -f "$build/build.ninja" ] && again=(--reconfigure)
    run 120 meson setup "${again[@]}" "$build" -Dbuildtype=release -Dcuda=enabled -Dnvcc_arch="$sm" -Dopencl=disabled -Dtests=enabled ||
        die "build: meson failed; without hwloc, PCRE2, jansson and cmocka on this machine, bring build-carry/ along: $log"
    for t in "${tests[@]}"; do
        targets+=("tests/test_gpu_$t")
    done
    run 460 ninja -C "$build" "${targets[@]}" tests/test_hybrid || {
        tail -n 20 "$log" >&2
        die "build: failed: $log"
    }
    say "build: sm_$sm in $((SECONDS - started)) s; $("$yoke" devices 2>>"$log" | grep '^cuda')"
}

# one NAME SECONDS COMMAND...: a row of tests.csv; a test that skips has failed here.
one() {
    local name=$1 started=$SECONDS rc=0 result=ok
    shift
    run "$@" || rc=$?
    case $rc in
        0) ;;
        77) result=skipped ;;
        124 | 137) result=timeout ;;
        *) result=failed ;;
    esac
    [ $result = ok ] || bad=$((bad + 1))
    echo "$name,$result,$rc,$((SECONDS - started))" >>"$out/tests.csv"
    say "gpu-tests: $name $result ($((SECONDS - started)) s)"
}

do_gpu_tests() {
    local t b=$build/tests check
    need_gpu gpu-tests
    bad=0
    echo "test,result,exit,seconds" >"$out/tests.csv"
    export YOKE_SOURCE=$root YOKE_FIXTURES=${YOKE_FIXTURES:-$root/../shared/models}
    one dialect 20 "$b/test_gpu_dialect"
    for t in device kernels matvec attention; do
        one "$t" 60 "$b/test_gpu_$t" cuda "$b"
    done
    YOKE_CUDA_HOLD=1 one device-hold 40 "$b/test_gpu_device" cuda "$b"
    one hybrid 80 "$b/test_hybrid" cuda 400 tiny-mixtral
    check=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    if [ -x "$check" ]; then # it runs kernels one at a time: mailboxes must not hold a stream of the driver
        export YOKE_CUDA_HOLD=1
        for t in kernels attention matvec; do
            one "memcheck-$t" 50 "$check" --tool memcheck --error-exitcode 9 "$b/test_gpu_$t" cuda
        done
        one racecheck-kernels 50 "$check" --tool racecheck --error-exitcode 9 "$b/test_gpu_kernels" cuda
        unset YOKE_CUDA_HOLD
    else
        say "gpu-tests: compute-sanitizer is not there: kernels were not checked with it"
    fi
    [ $bad -eq 0 ] || die "gpu-tests: $bad of $(($(wc -l <"$out/tests.csv") - 1)) not ok: $out/tests.csv, $log"
}

do_kernels() {
    need_gpu kernels
    run 300 "$yoke" profile --device cuda:0 -o "$out/machine.json" || die "kernels: yoke profile failed: $log"
    python3 - "$out/machine.json" >"$out/kernels.csv" <<'END' || die "kernels: the machine file could not be read"
import json
import sys

with open(sys.argv[1], encoding='utf-8') as f:
    d = [x for x in json.load(f)['devices'] if x['backend'] == 'cuda'][0]
print('what,tokens,t0_ns,bytes_per_s,best_bytes_per_s,spread')


def row(what, tokens, fit):
    print('%s,%s,%.0f,%.0f,%.0f,%.4f' % (what, tokens, fit['ns'], fit['bytes_per_s'], fit['best_bytes_per_s'], fit['spread']))


for kind, by_n in d.get('product_fits', {}).items():
    for n, fit in by_n.items():
        row('product ' + kind, n, fit)
for name in ('attention_fit', 'copy_fit'):
    if name in d:
        row(name[:-4], 1, d[name])
for name, fit in d.get('link', {}).get('fits', {}).items():
    row('link ' + name, 1, fit)
for name in ('launch_ns', 'hand_off_ns', 'hand_off_p99_ns'):
    print('%s,1,%.0f,,,' % (name[:-3], d.get(name, 0)))
END
    say "kernels: $(($(wc -l <"$out/kernels.csv") - 1)) rows in $out/kernels.csv"
}

# Matrix units: gpu/cuda/mma.k.h. YOKE_CUDA_MMA=0 leaves them out; both give the same bits: test_gpu_matvec compares with double precision, and
# many tokens with one at a time.
do_mma() {
    local b=$build/tests m type which
    need_gpu mma
    bad=0
    [ -s "$out/tests.csv" ] || echo "test,result,exit,seconds" >"$out/tests.csv"
    one mma-matvec 60 "$b/test_gpu_matvec" cuda "$b"
    YOKE_CUDA_MMA=0 one mma-off-matvec 60 "$b/test_gpu_matvec" cuda "$b"
    [ $bad -eq 0 ] || die "mma: results are wrong: $log"
    rm -f "$out/mma-bench.csv" "$out"/mma-*.json
    for type in Q4_0 Q4_K_M Q8_0; do
        m=$(model "llama-1b@$type" 60) || exit 1
        for which in 1 0; do
            export YOKE_CUDA_MMA=$which
            run 40 "$yoke" profile --device cuda:0 -m "$m" -o "$out/mma-$type-$which.json" || die "mma: yoke profile failed: $log"
            rows "$out/mma-bench.csv" "$type mma=$which" -m "$m" --device cuda:0 --no-auto-partition -p 512 -n 8 -r 3
        done
        unset YOKE_CUDA_MMA
    done
    python3 - "$out" >"$out/mma.csv" <<'END' || die "mma: no products of 16 tokens or more in $out/mma-*.json"
import glob
import json
import sys

BYTES = 32 << 20


def times(path):
    """Nanoseconds of a product with 32 MiB of weights, by type and tokens."""
    with open(path, encoding='utf-8') as f:
        d = [x for x in json.load(f)['devices'] if x['backend'] == 'cuda'][0]
    return {(kind, int(n)): fit['ns'] + BYTES / fit['bytes_per_s'] * 1e9
            for kind, by_n in d.get('product_fits', {}).items() for n, fit in by_n.items()}


rows = {}
for on in glob.glob(sys.argv[1] + '/mma-*-1.json'):
    a, b = times(on), times(on[:-6] + '0.json')
    rows.update({key: (a[key], b[key]) for key in a if key in b and key[1] >= 16})
print('type,tokens,us_mma,us_without,ratio')
for (kind, n), (a, b) in sorted(rows.items()):
    print('%s,%d,%.1f,%.1f,%.2f' % (kind, n, a / 1e3, b / 1e3, b / a))
sys.exit(0 if rows else 1)
END
    [ $bad -eq 0 ] || die "mma: $bad measurements failed"
    say "mma: $(($(wc -l <"$out/mma.csv") - 1)) rows in $out/mma.csv"
}

# rows CSV LABEL FLAGS...: yoke bench, its rows with the label in front.
rows() {
    local file=$1 label=$2 text
    shift 2
    echo "+ bench $*" >>"$log"
    text=$(timeout -k 10 90 "$yoke" bench -o csv "$@" 2>>"$log" </dev/null) || {
        say "$label: yoke bench $* failed: $log"
        bad=$((bad + 1))
        return
    }
    [ -s "$file" ] || echo "label,$(head -n 1 <<<"$text")" >"$file"
    sed "1d; s|^|$label,|" <<<"$text" >>"$file"
}

do_bench() {
    local m
    need_gpu bench
    bad=0
    rm -f "$out/bench.csv"
    for m in models/yoke-tiny-mixtral-q4_k_m.gguf "$synth"; do
        m=$(model "$m") || exit 1
        rows "$out/bench.csv" cuda -m "$m" --device cuda:0 --no-auto-partition -p 512 -n 64 -r 3
        rows "$out/bench.csv" cpu -m "$m" --device cpu -p 128 -n 16 -r 2
    done
    [ $bad -eq 0 ] || die "bench: $bad measurements failed"
    say "bench: $(($(wc -l <"$out/bench.csv") - 1)) rows in $out/bench.csv"
}

do_hybrid() {
    local m
    need_gpu hybrid
    bad=0
    case "$1" in
        ?*:?*) ;;
        *) die "hybrid: --cell takes MODEL:BUDGET" ;;
    esac
    m=$(model "${1%:*}") || exit 1
    run 120 "$yoke" plan -m "$m" --device cuda:0 --vram-budget "${1##*:}" || die "hybrid: no plan for $1: $log"
    rows "$out/hybrid.csv" "hybrid ${1##*:}" -m "$m" --device cuda:0 --vram-budget "${1##*:}" -p 512 -n 32 -r 3
    rows "$out/hybrid.csv" cpu -m "$m" --device cpu -p 128 -n 16 -r 2
    [ $bad -eq 0 ] || die "hybrid: $bad measurements failed"
    say "hybrid: $1 in $out/hybrid.csv"
}

[ $# -gt 0 ] || set -- --help
while [ $# -gt 0 ]; do
    step=$1
    shift
    [ "$step" = carry ] || use_carried
    case "$step" in
        carry) do_carry ;;
        build) do_build ;;
        gpu-tests) do_gpu_tests ;;
        kernels) do_kernels ;;
        mma) do_mma ;;
        bench) do_bench ;;
        model)
            if [ $# -lt 1 ]; then
                die "model needs SHAPE@TYPE"
            fi
            model "$1" 560 || exit 1
            shift
            ;;
        hybrid)
            if [ "${1:-}" != --cell ] || [ $# -lt 2 ]; then
                die "hybrid needs --cell MODEL:BUDGET"
            fi
            do_hybrid "$2"
            shift 2
            ;;
        -h | --help) sed -n '2,22s/^# \{0,1\}//p' "$0" ;;
        *)
            echo "device.sh: unknown step $step (carry build gpu-tests kernels mma bench model hybrid)" >&2
            exit 2
            ;;
    esac
done
