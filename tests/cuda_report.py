#!/usr/bin/env python3
"""What ptxas said of the kernels (gpu/cuda/compile.py): no warnings, and for each architecture every kernel without spills, without local memory,
with at most 48 KiB of shared memory, and no more registers than leave a multiprocessor of 65536 with 10 groups of 64, or 6 in products of many
tokens, or 2 of 128 in those by matrix units: what they take today on sm_75 to sm_120; no card has said yet what is best.   cuda_report.py REPORT | --self-test"""
import re
import sys

MAX_SHARED = 49152
MAX_REGISTERS = (('matmul', 168), ('mma', 208), ('', 96))


def check(text):
    """(kernels by architecture, what is wrong)"""
    head, _, said = text.partition('\n')
    archs, wrong, seen, now = head.split(','), [], {}, None
    for s in said.split('\n'):
        if 'warning' in s.lower():
            wrong.append(s)
        m = re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", s)
        if m:
            now = (m.group(2), m.group(1))
            seen[now] = set()
        m = re.search(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads', s)
        if m and now:
            seen[now].add('stack')
            if m.groups() != ('0', '0', '0'):
                wrong.append('%s for sm_%s: %s' % (now[1], now[0], s.strip()))
        m = re.search(r'Used (\d+) registers', s)
        if m and now:
            seen[now].add('registers')
            if int(m.group(1)) > next(n for k, n in MAX_REGISTERS if now[1].startswith(k)):
                wrong.append('%s for sm_%s: %s registers' % (now[1], now[0], m.group(1)))
            m = re.search(r'(\d+) bytes smem', s)
            if m and int(m.group(1)) > MAX_SHARED:
                wrong.append('%s for sm_%s: %s bytes of shared memory' % (now[1], now[0], m.group(1)))
    kernels = {a: sorted(k for b, k in seen if b == a) for a in archs}
    for a in archs:
        if len(kernels[a]) < 20 or kernels[a] != kernels[archs[0]]:
            wrong.append('sm_%s: %d kernels: %s' % (a, len(kernels[a]), ' '.join(kernels[a])))
    wrong += ['%s for sm_%s: the report is not whole' % (k, a) for (a, k), parts in seen.items() if len(parts) != 2]
    return kernels, wrong


def self_test():
    kernel = ("ptxas info    : Compiling entry function 'k%d' for 'sm_80'\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
              "ptxas info    : Used 40 registers, 2048 bytes smem\n")
    good = '80\n' + ''.join(kernel % i for i in range(20))
    bad = [good.replace('0 bytes spill stores', '8 bytes spill stores', 1), good.replace('40 registers', '97 registers', 1), good.replace('k3', 'attention').replace('40 reg', '97 reg'),
           good.replace('k3', 'matmul_q4_0').replace('40 reg', '169 reg'), good + 'x warning: y\n',
           good.replace('0 bytes stack', '16 bytes stack', 1), good.replace('80', '80,90', 1), '80\n' + kernel % 0,
           good.replace('2048', '60000', 1), good[:-40]]
    assert not check(good)[1], check(good)[1]
    for i, text in enumerate(bad):
        assert check(text)[1], i


def main():
    self_test()
    with open(sys.argv[1], encoding='utf-8') as f:
        kernels, wrong = check(f.read())
    for s in wrong:
        print('FAILED: ' + s)
    print('%d kernels for each of sm_%s' % (len(kernels[min(kernels)]), ' sm_'.join(kernels)))
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
