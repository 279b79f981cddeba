#!/usr/bin/env python3
"""yoke bench and a peer's llama-bench on the same files, in turns; medians, ratios and the memory limit, as CSV and as a picture.

  compare.py --yoke YOKE --peer LLAMA_BENCH [-t 1,2] [-p 512] [-n 32] [-r 5] [--csv FILE] [--svg FILE] MODEL.gguf...

Each round measures one program, then the other, so that a machine that slows down slows both. Figures of different rounds are never compared, absolute
speeds mean little on a shared machine: look at the ratio. The limit of decoding is the weight bytes of a token over the best read rate seen in the run.
A peer that fails is written as empty.
"""
import argparse
import csv
import json
import os
import statistics
import subprocess
import sys


def call(args, timeout):
    try:
        r = subprocess.run(args, capture_output=True, text=True, timeout=timeout, check=False)
        return json.loads(r.stdout) if r.returncode == 0 else None
    except (ValueError, subprocess.TimeoutExpired):
        return None


def measure(program, model, threads, test, n, timeout):
    """Tokens per second of one repetition, and yoke's whole row."""
    size = ['-p', n, '-n', '0'] if test == 'pp' else ['-p', '0', '-n', n]
    rows = call([program, *(['bench'] if os.path.basename(program) == 'yoke' else []), '-m', model, '-t', threads, *size, '-r', '1', '-o', 'json'], timeout)
    return (rows[0]['avg_ts'], rows[0]) if rows else (None, {})


def cell(args, model, threads, test, n):
    ours, peers, limits = [], [], []
    for _ in range(args.rounds):
        value, row = measure(args.yoke, model, threads, test, str(n), args.timeout)
        if value:
            ours.append(value)
            if test == 'tg' and row.get('read_rate'):
                limits.append(row['read_rate'] / row['bytes_per_token'])
        if not peers or peers[-1]:
            peers.append(measure(args.peer, model, threads, test, str(n), args.timeout)[0])
    peers = [p for p in peers if p]
    middle = lambda v: statistics.median(v) if v else None
    return {'model': os.path.basename(model), 'threads': threads, 'test': '%s%d' % (test, n), 'yoke': middle(ours), 'peer': middle(peers),
            'ratio': middle(ours) / middle(peers) if ours and peers else None, 'limit': max(limits) if limits else None,
            'share': middle(ours) / max(limits) if ours and limits else None, 'rounds': len(ours)}


def picture(rows):
    """A bar for each program and a line for the limit, each cell scaled to its largest figure."""
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="760" height="%d" font-family="sans-serif" font-size="12">' % (40 + 44 * len(rows)),
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="10" y="20">tokens/s: yoke (dark), peer (light), memory limit (line); medians of interleaved rounds</text>']
    for i, r in enumerate(rows):
        y, most = 36 + 44 * i, max(v for v in (r['yoke'], r['peer'], r['limit'], 1e-9) if v)
        out.append('<text x="10" y="%d">%s, %s threads, %s</text>' % (y + 18, r['model'], r['threads'], r['test']))
        for k, (name, colour) in enumerate((('yoke', '#245'), ('peer', '#9bc'))):
            if r[name]:
                width = 340 * r[name] / most
                out.append('<rect x="300" y="%d" width="%.1f" height="14" fill="%s"/>' % (y + 16 * k, width, colour))
                more = ' (%.2fx)' % r['ratio'] if name == 'yoke' and r['ratio'] else ''
                out.append('<text x="%.1f" y="%d">%.2f%s</text>' % (306 + width, y + 12 + 16 * k, r[name], more))
        if r['limit']:
            out.append('<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#c33" stroke-width="2"/>' %
                       (300 + 340 * r['limit'] / most, 300 + 340 * r['limit'] / most, y - 2, y + 32))
    return '\n'.join(out + ['</svg>', ''])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('models', nargs='+')
    ap.add_argument('--yoke', required=True)
    ap.add_argument('--peer', required=True)
    ap.add_argument('-t', '--threads', default='1,2')
    ap.add_argument('-p', '--prompt', type=int, default=512)
    ap.add_argument('-n', '--gen', type=int, default=32)
    ap.add_argument('-r', '--rounds', type=int, default=5)
    ap.add_argument('--timeout', type=float, default=300)
    ap.add_argument('--csv')
    ap.add_argument('--svg')
    args = ap.parse_args()
    rows = []
    for model in args.models:
        for threads in args.threads.split(','):
            for test, n in (('pp', args.prompt), ('tg', args.gen)):
                if n:
                    rows.append(cell(args, model, threads, test, n))
                    print(' '.join('%s=%s' % (k, '%.3g' % v if isinstance(v, float) else v) for k, v in rows[-1].items()), flush=True)
    if args.csv:
        with open(args.csv, 'w', newline='') as f:
            w = csv.DictWriter(f, rows[0], lineterminator='\n')
            w.writeheader()
            w.writerows({k: '%.5g' % v if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    if args.svg:
        with open(args.svg, 'w') as f:
            f.write(picture(rows))
    return 0 if all(r['yoke'] for r in rows) else 1


if __name__ == '__main__':
    sys.exit(main())
