#!/usr/bin/env python3
"""What yoke plan predicts from a fresh profile against what yoke bench measures, on the CPU, in turns; medians and ratios, as CSV.

  predict.py --yoke YOKE [-t 2] [-p 512] [-n 32] [-d 0] [-r 3] [-s SECONDS] [--others 1] [--full] [--csv FILE] MODEL.gguf...

Each round profiles the machine with the model's types, has the planner predict from that profile alone, and measures; so a machine that slows down moves
both. Prompts are computed in one chunk. ratio: the median of predicted over measured of each round. FILE is appended to when it is there.
A profile leaves out passes that shared the processors with other programs, and a measurement cannot: others is the largest share of the processors' time
(all of them) that other programs and other guests of the host had while a round was measured; rounds with more than --others do not count.
With -s no model is begun that would not be done in so many seconds, counted by the longest so far.
"""
import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time


def call(args):
    r = subprocess.run(args, stdout=subprocess.PIPE, text=True, check=False)
    if r.returncode:
        sys.exit('%s: exit code %d' % (' '.join(args), r.returncode))
    return json.loads(r.stdout)


def at(figures, x):
    """A figure of a plan at depth or chunk x, off the straight line of seconds between its neighbours. figures: {depth or chunk: tokens/s}."""
    points = sorted((float(k), 1 / v) for k, v in figures.items())
    low = max((p for p in points if p[0] <= x), default=points[0])
    high = min((p for p in points if p[0] >= x), default=points[-1])
    part = (x - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0
    return 1 / (low[1] + part * (high[1] - low[1]))


class Others:
    """The share of the processors' time that neither this program's children nor idleness had, from now on."""

    def __init__(self):
        self.begin = self.times()

    @staticmethod
    def times():
        with open('/proc/stat') as f:
            ticks = [int(x) for x in f.readline().split()[1:9]]
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = sum(ticks) - ticks[3] - ticks[4]  # without idle and iowait, with steal
        return busy / os.sysconf('SC_CLK_TCK') - own.ru_utime - own.ru_stime, sum(ticks) / os.sysconf('SC_CLK_TCK')

    def share(self):
        others, both = (b - a for a, b in zip(self.begin, self.times()))
        return max(others, 0) / both if both > 0 else 0


def one_round(args, model, folder):
    machine = os.path.join(folder, 'machine.json')
    threads = ['-t', str(args.threads)]
    subprocess.run([args.yoke, 'profile', '-q', '--device', 'cpu', *([] if args.full else ['--quick']), *threads, '-m', model, '-o', machine], check=True)
    with open(machine) as f:
        noisy = json.load(f).get('noisy', False)
    context = max(args.prompt, 2 * args.depth + args.gen)
    plan = call([args.yoke, 'plan', '-q', '-m', model, '--device', 'cpu', *threads, '--machine', machine, '-c', str(context), '-ub', str(args.prompt),
                 '-o', 'json'])
    others = Others()
    rows = call([args.yoke, 'bench', '-q', '-m', model, '--device', 'cpu', *threads, '-p', str(args.prompt), '-n', str(args.gen), '-ub',
                 str(args.prompt), '-d', str(args.depth), '-r', '1', '-o', 'json'])
    share = others.share()
    out = []
    for row in rows:
        prompt = row['n_prompt'] > 0
        speed = plan['predicted']
        if prompt and not args.depth:
            out.append(('pp%d' % args.prompt, at(speed['prefill_tps'], args.prompt), row['avg_ts'], noisy, share))
        elif not prompt:
            name = 'tg%d' % args.gen + (' @ d%d' % args.depth if args.depth else '')
            out.append((name, at(speed['decode_tps'], args.depth + args.gen / 2), row['avg_ts'], noisy, share))
    return out


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('models', nargs='+')
    ap.add_argument('--yoke', required=True)
    ap.add_argument('-t', '--threads', type=int, default=2)
    ap.add_argument('-p', '--prompt', type=int, default=512)
    ap.add_argument('-n', '--gen', type=int, default=32)
    ap.add_argument('-d', '--depth', type=int, default=0)
    ap.add_argument('-r', '--rounds', type=int, default=3)
    ap.add_argument('-s', '--seconds', type=float, default=float('inf'))
    ap.add_argument('--others', type=float, default=1)
    ap.add_argument('--full', action='store_true', help='the full profile instead of the quick one')
    ap.add_argument('--csv')
    args = ap.parse_args()
    rounds, longest, begin = {}, {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models * args.rounds:
            start = time.monotonic()
            if start - begin + longest.get(model, 0) > args.seconds:
                continue
            for test, predicted, measured, noisy, others in one_round(args, model, folder):
                print('%s %s: %.4g / %.4g = %.3f, others %.3f' % (os.path.basename(model), test, predicted, measured, predicted / measured, others),
                      file=sys.stderr, flush=True)
                if others <= args.others:
                    rounds.setdefault((os.path.basename(model), test), []).append((predicted, measured, predicted / measured, noisy, others))
            longest[model] = max(longest.get(model, 0), time.monotonic() - start)
    rows = []
    for (model, test), v in sorted(rounds.items()):
        middle = [statistics.median(x[i] for x in v) for i in range(3)]
        rows.append({'model': model, 'threads': args.threads, 'test': test, 'predicted': '%.4g' % middle[0], 'measured': '%.4g' % middle[1],
                     'ratio': '%.3f' % middle[2], 'ratio_min': '%.3f' % min(x[2] for x in v), 'ratio_max': '%.3f' % max(x[2] for x in v),
                     'rounds': len(v), 'noisy': sum(x[3] for x in v), 'others': '%.3f' % max(x[4] for x in v)})
        print(' '.join('%s=%s' % kv for kv in rows[-1].items()), flush=True)
    if args.csv and rows:
        new = not os.path.exists(args.csv)
        with open(args.csv, 'a', newline='') as f:
            w = csv.DictWriter(f, rows[0], lineterminator='\n')
            if new:
                w.writeheader()
            w.writerows(rows)
    return 0 if rows and all(abs(float(r['ratio']) - 1) <= 0.1 for r in rows) else 1


if __name__ == '__main__':
    sys.exit(main())
