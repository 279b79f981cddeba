#!/usr/bin/env python3
"""Turns the kernel texts into C for the modules.

  embed.py text OUT FILE...   OUT: the texts as strings and a table of kernels (name, text, kinds of arguments)
  embed.py host OUT FILE...   OUT: the kernels as C functions and a table of them with unpacked arguments
  embed.py rows OUT FILE...   OUT: only the table of kernels (name, kinds of arguments)

The first FILE is the dialect. A file that holds no kernel belongs to all files after it. A file that asks for YK_ONLY has a kernel for each weight type, named
..._TYPE; each is a text of its own, so that a device compiles what it runs. Kinds of arguments: m memory, u u32, f f32.
"""
import os
import re
import sys


def expand(text, macros):
    """Argument lists that several kernels share are macros named ..._ARGS, of this file or one before it."""
    macros.update(re.findall(r'#define (\w+_ARGS)((?:[^\n]*\\\n)*[^\n]*)', text))
    for name, value in macros.items():
        text = re.sub(r'\(%s\)' % name, lambda m: '(' + value.replace('\\\n', ' ') + ')', text)
    return text


def kernels(text, macros):
    """(name, kinds) of each kernel in a file."""
    found = []
    text = expand(text, macros)
    for m in re.finditer(r'^YK_KERNEL\((\w+)\)\(', text, re.M):
        rest = text[m.end():]
        depth = 1
        for i, c in enumerate(rest):
            depth += (c == '(') - (c == ')')
            if depth == 0:
                break
        kinds = ''
        for a in re.split(r',(?![^()]*\))', rest[:i]):
            a = ' '.join(a.split())
            kind = 'm' if re.fullmatch(r'YK_(IN|OUT)\(\w+\)', a) else 'u' if re.fullmatch(r'const u32 \w+', a) else \
                'f' if re.fullmatch(r'const f32 \w+', a) else None
            if kind is None:
                raise SystemExit('%s: argument "%s" is neither memory nor u32 nor f32' % (m.group(1), a))
            kinds += kind
        if len(kinds) > 32:
            raise SystemExit('%s has %d arguments, at most 32' % (m.group(1), len(kinds)))
        found.append((m.group(1), kinds))
    return found


def quoted(text):
    return '\n'.join('    "%s\\n"' % s.replace('\\', '\\\\').replace('"', '\\"') for s in text.rstrip('\n').split('\n'))


def main():
    form, out, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    lines = ['/* Made by gpu/embed.py from the kernel texts. */']
    table, texts, common, macros = [], [], [], {}
    for path in files:
        with open(path, encoding='utf-8') as f:
            text = f.read()
        stem = os.path.basename(path).split('.')[0]
        own = kernels(text, macros)
        if form == 'host':
            lines.append('#include "gpu/%s/%s"' % (os.path.basename(os.path.dirname(path)), os.path.basename(path)))
        elif form == 'text':
            lines.append('static const char text_%s[] =\n%s;' % (stem, quoted(text)))
        if not own:
            common = common + [stem]
        elif 'YK_ONLY' in text:
            for name, kinds in own:
                if form == 'text':
                    lines.append('static const char only_%s[] = "#define YK_ONLY YK_W_%s\\n";' % (name, name.split('_', 1)[1].upper()))
                texts.append((name, ['only_' + name] + ['text_' + p for p in common + [stem]]))
                table.append((name, len(texts) - 1, kinds))
        else:
            texts.append((stem, ['text_' + p for p in common + [stem]]))
            table += [(name, len(texts) - 1, kinds) for name, kinds in own]
    if form == 'host':
        for name, _, kinds in table:
            args = ', '.join({'m': 'a[%d].base, a[%d].at', 'u': 'a[%d].u32', 'f': 'a[%d].f32'}[k].replace('%d', str(i))
                             for i, k in enumerate(kinds))
            lines.append('static void call_%s(const yk_host_arg *a)\n{\n    %s(%s);\n}' % (name, name, args))
        lines.append('static const yk_host_kernel host_kernels[] = {')
        lines += ['    {"%s", "%s", call_%s},' % (name, kinds, name) for name, _, kinds in table]
    elif form == 'rows':
        lines.append('static const struct kernel_row {\n    const char *name;\n    const char *kinds;\n} kernel_rows[] = {')
        lines += ['    {"%s", "%s"},' % (name, kinds) for name, _, kinds in table]
    else:
        for stem, parts in texts:
            lines.append('static const char *const parts_%s[] = {%s};' % (stem, ', '.join(parts)))
        lines.append('static const struct kernel_text {\n    const char *name;\n    const char *const *parts;\n    unsigned n_parts;\n'
                     '} kernel_texts[] = {')
        lines += ['    {"%s", parts_%s, %d},' % (stem, stem, len(parts)) for stem, parts in texts]
        lines.append('};\nstatic const struct kernel_row {\n    const char *name;\n    unsigned text;\n    const char *kinds;\n'
                     '} kernel_rows[] = {')
        lines += ['    {"%s", %d, "%s"},' % row for row in table]
    with open(out, 'w', encoding='utf-8') as f:
        f.write('\n'.join(lines) + '\n};\n')


if __name__ == '__main__':
    main()
