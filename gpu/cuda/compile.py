#!/usr/bin/env python3
"""Compiles the kernel texts with nvcc for several architectures and writes them as C.

  compile.py NVCC ARCHS ROOT WERROR OUT REPORT SOURCE

ARCHS is a list as 80,90: machine code for each, and PTX, from which a driver makes code for later cards, for the newest of each generation that
another one follows (90 before 120) and for the last. OUT: the fat binary as an array and the list as numbers. REPORT: what ptxas says of each kernel
(registers, spills), for tests/cuda_report.py.
"""
import os
import subprocess
import sys
import tempfile


def main():
    nvcc, archs, root, werror, out, report, source = sys.argv[1:]
    sm = sorted({int(a) for a in archs.split(',')})
    ptx = sorted({a for a, b in zip(sm, sm[1:] + [10000]) if a // 10 != b // 10 and a >= 90} | {sm[-1]})
    command = [nvcc, '-fatbin', '-fmad=false', '-Xptxas', '-v', '-I' + root]
    for a in sm:
        command += ['-gencode', 'arch=compute_%d,code=%s' % (a, '[sm_%d,compute_%d]' % (a, a) if a in ptx else 'sm_%d' % a)]
    if werror == 'true':
        command += ['-Werror', 'all-warnings']
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(out))) as folder:
        image = os.path.join(folder, 'kernels.fatbin')
        run = subprocess.run(command + ['-o', image, source], capture_output=True, text=True)
        said = run.stdout + run.stderr
        if run.returncode:
            sys.stderr.write(said)
            return 1
        with open(image, 'rb') as f:
            data = f.read()
    sys.stderr.write(''.join(s + '\n' for s in said.split('\n') if 'warning' in s))
    data += bytes(-len(data) % 8)
    words = ['0x%016x' % int.from_bytes(data[i:i + 8], 'little') for i in range(0, len(data), 8)]
    with open(out, 'w', encoding='utf-8') as f:
        f.write('/* Made by gpu/cuda/compile.py. */\n')
        f.write('static const int image_sm[] = {%s};\n' % ', '.join(map(str, sm)))
        f.write('static const int image_ptx[] = {%s};\n' % ', '.join(map(str, ptx)))
        f.write('#define IMAGE_ARCHS "%s"\n' % ' '.join(['sm_%d' % a for a in sm] + ['PTX %d' % a for a in ptx]))
        f.write('static const uint64_t image[] = {\n')
        f.writelines('    %s,\n' % ', '.join(words[i:i + 6]) for i in range(0, len(words), 6))
        f.write('};\n')
    with open(report, 'w', encoding='utf-8') as f:
        f.write('%s\n%s' % (archs, said))
    return 0


if __name__ == '__main__':
    sys.exit(main())
