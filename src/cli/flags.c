/* flags.c - the table of all flags. Parsing, --help, the man page's and the completion's tests all follow it. */
#include "cli.h"
#include <string.h>

#define ENGINE  (YK_CMD_RUN | YK_CMD_CHAT | YK_CMD_PERPLEXITY | YK_CMD_BENCH)
#define PLANNED (ENGINE | YK_CMD_PLAN)
#define MODEL   (PLANNED | YK_CMD_INSPECT | YK_CMD_TOKENIZE)
#define SAMPLE  (YK_CMD_RUN | YK_CMD_CHAT)
#define ALL     (MODEL | YK_CMD_DEVICES | YK_CMD_SYNTH | YK_CMD_PROFILE)

#define AT(field) offsetof(yk_cli_opts, field)
#define I31       2147483647.0

static const yk_flag table[] = {
    /* model */
    {MODEL, "-m, --model", "FILE", YK_FLAG_TEXT, AT(model), .help = "GGUF model (default: the one that comes with yoke)"},
    {YK_CMD_PROFILE, "-m, --model", "FILE", YK_FLAG_TEXT, AT(model),
     .help = "measure the weight types of this model (default: Q4_K, Q8_0 and F16)"},
    {ENGINE | YK_CMD_INSPECT, "--check-tensors", NULL, YK_FLAG_ON, AT(check_tensors),
     .help = "read every weight first and refuse NaN and infinity"},
    {YK_CMD_INSPECT, "--vocab-only", NULL, YK_FLAG_ON, AT(vocab_only), .help = "look at metadata and vocabulary only"},

    /* text in */
    {YK_CMD_RUN | YK_CMD_TOKENIZE, "-p, --prompt", "TEXT", YK_FLAG_TEXT, AT(prompt), .help = "the text"},
    {YK_CMD_RUN, "-f, --file", "FILE", YK_FLAG_TEXT, AT(prompt_file),
     .help = "read the text from a file, - for stdin; a newline at its end is dropped"},
    {YK_CMD_TOKENIZE | YK_CMD_PERPLEXITY, "-f, --file", "FILE", YK_FLAG_TEXT, AT(prompt_file),
     .help = "read the text from a file, - for stdin"},
    {YK_CMD_RUN, "--ids", "IDS", YK_FLAG_TEXT, AT(ids), .help = "the prompt as token ids, for example \"1 403 407\""},
    {YK_CMD_CHAT, "-sys, --system-prompt", "TEXT", YK_FLAG_TEXT, AT(system), .help = "text that precedes the conversation"},
    {SAMPLE | YK_CMD_TOKENIZE, "-e, --escape", NULL, YK_FLAG_ON, AT(escape),
     .help = "replace \\n \\r \\t \\\" \\' \\\\ \\xNN in the text given on the command line"},
    {YK_CMD_TOKENIZE, "--no-special", NULL, YK_FLAG_ON, AT(no_special), .help = "add no BOS or EOS"},
    {YK_CMD_TOKENIZE, "--no-parse-special", NULL, YK_FLAG_ON, AT(no_parse_special),
     .help = "take special tokens written out in the text as plain text"},

    /* bench */
    {YK_CMD_BENCH, "-p, --n-prompt", "N,...", YK_FLAG_LIST, AT(bench_prompt), 0, 1048576,
     .help = "prompt lengths to measure, 0 for none (default: 512)"},
    {YK_CMD_BENCH, "-n, --n-gen", "N,...", YK_FLAG_LIST, AT(bench_gen), 0, 1048576,
     .help = "generated tokens to measure, 0 for none (default: 128)"},
    {YK_CMD_BENCH, "-pg", "P,G", YK_FLAG_PAIRS, AT(bench_pair), 1, 1048576,
     .help = "measure a prompt and the generation behind it as one; may be repeated"},
    {YK_CMD_BENCH, "-d, --n-depth", "N,...", YK_FLAG_LIST, AT(bench_depth), 0, 1048576,
     .help = "tokens already in the sequence (default: 0)"},
    {YK_CMD_BENCH, "-t, --threads", "N,...", YK_FLAG_LIST, AT(bench_threads), 1, 1024,
     .help = "CPU threads (default: one for each physical core)"},
    {YK_CMD_BENCH, "-r, --repetitions", "N", YK_FLAG_INT, AT(repetitions), 1, 1000,
     .help = "measurements per row (default: 5)"},

    /* length and context */
    {SAMPLE, "-n, --predict, --n-predict", "N", YK_FLAG_INT, AT(n_predict), -1, I31,
     .help = "tokens to generate at most, -1: until the end or the context is full (default: -1)"},
    {SAMPLE | YK_CMD_PLAN, "-c, --ctx-size", "N", YK_FLAG_INT, AT(context), 0, 16777216,
     .help = "context in tokens, 0: the model's, at most 4096 (default: 0)"},
    {YK_CMD_PERPLEXITY, "-c, --ctx-size", "N", YK_FLAG_INT, AT(context), 4, 16777216,
     .help = "tokens in a chunk (default: 512)"},
    {YK_CMD_PERPLEXITY, "--chunks", "N", YK_FLAG_INT, AT(chunks), -1, I31,
     .help = "chunks to use at most, -1: all (default: -1)"},

    /* machine */
    {(PLANNED | YK_CMD_PROFILE) & ~YK_CMD_BENCH, "-t, --threads", "N", YK_FLAG_INT, AT(threads), 1, 1024,
     .help = "CPU threads (default: one for each physical core)"},
    {PLANNED, "-b, --batch-size", "N", YK_FLAG_INT, AT(batch), 1, 1048576,
     .help = "prompt tokens handed over at once (default: 2048)"},
    {PLANNED, "-ub, --ubatch-size", "N", YK_FLAG_INT, AT(ubatch), 1, 1048576,
     .help = "tokens computed at once, at most -b (default: 512)"},
    {PLANNED, "-ctk, --cache-type-k", "TYPE", YK_FLAG_CHOICE, AT(cache_k), .choices = "f16|f32",
     .help = "type of the keys in the cache, f16 or f32 (default: f16)"},
    {PLANNED, "-ctv, --cache-type-v", "TYPE", YK_FLAG_CHOICE, AT(cache_v), .choices = "f16|f32",
     .help = "type of the values in the cache, the same as -ctk (default: f16)"},
    {PLANNED, "-dev, --device", "NAME", YK_FLAG_TEXT, AT(device), .help = "auto, cpu, opencl[:N] or cuda[:N] (default: auto)"},
    {YK_CMD_PROFILE, "-dev, --device", "NAME", YK_FLAG_TEXT, AT(device),
     .help = "measure this device, or cpu for none (default: all)"},
    {YK_CMD_PROFILE, "--quick", NULL, YK_FLAG_ON, AT(quick), .help = "measure for one to three seconds, as run does"},
    {PLANNED, "--vram-budget", "SIZE", YK_FLAG_SIZE, AT(vram_budget),
     .help = "ceiling of device memory: 8G, 512M (default: what is free)"},
    {PLANNED, "-ngl, --gpu-layers, --n-gpu-layers", "N", YK_FLAG_INT, AT(gpu_layers), -1, 1000000,
     .help = "the last N layers on the device, the head is one; -1: planned (default: -1)"},
    {PLANNED, "-ncmoe, --n-cpu-moe", "N", YK_FLAG_INT, AT(cpu_moe), 0, 1000000,
     .help = "keep the experts of the first N layers on the host (default: 0)"},
    {PLANNED, "-nkvo, --no-kv-offload", NULL, YK_FLAG_ON, AT(kv_on_host),
     .help = "keep the KV cache on the host, and attention with it"},
    {PLANNED, "-ot, --override-tensor", "REGEX=DEVICE", YK_FLAG_TEXT, AT(overrides),
     .help = "keep the tensors whose names match on a device or the CPU; more, separated by commas"},
    {PLANNED, "--auto-partition", NULL, YK_FLAG_ON, AT(auto_partition),
     .help = "let the planner place weights and work (default)"},
    {PLANNED, "--no-auto-partition", NULL, YK_FLAG_OFF, AT(auto_partition),
     .help = "no planner: everything on the device named, or on the CPU"},
    {PLANNED, "--machine", "FILE", YK_FLAG_TEXT, AT(machine),
     .help = "plan by this measurement (default: the user's, made when there is none)"},
    {ENGINE, "--plan", "FILE", YK_FLAG_TEXT, AT(plan), .help = "run this plan instead of making one"},
    {PLANNED, "--policy", "NAME", YK_FLAG_CHOICE, AT(policy), .choices = "static|adaptive",
     .help = "adaptive: experts that are chosen often take the place of others on the device (default: static)"},
    {ENGINE, "--explain", NULL, YK_FLAG_ON, AT(explain), .help = "say on stderr what runs where and why, one screen"},
    {ENGINE, "--no-repack", NULL, YK_FLAG_ON, AT(no_repack),
     .help = "compute from the file's pages instead of a packed copy in memory: slower, less memory"},
    {ENGINE, "--pack-cache", "DIR", YK_FLAG_TEXT, AT(pack_cache),
     .help = "keep the packed weights in this folder: the next start reads them"},
    {PLANNED | YK_CMD_PROFILE, "--isa", "NAME", YK_FLAG_TEXT, AT(isa),
     .help = "highest instruction set to use, ref for plain C (default: the best there is)"},

    /* sampling */
    {SAMPLE, "-s, --seed", "N", YK_FLAG_INT, AT(seed), -1, 9007199254740992.0,
     .help = "seed of the draw, -1: random (default: -1)"},
    {SAMPLE, "--temp, --temperature", "X", YK_FLAG_REAL, AT(temperature), 0, 100,
     .help = "temperature, 0: greedy (default: 0.8)"},
    {SAMPLE, "--top-k", "N", YK_FLAG_INT, AT(top_k), 0, I31,
     .help = "choose among the N most likely tokens, 0: off (default: 40)"},
    {SAMPLE, "--top-p", "X", YK_FLAG_REAL, AT(top_p), 0, 1, .open_min = true,
     .help = "choose among the most likely tokens of total probability X, 1: off (default: 0.95)"},
    {SAMPLE, "--min-p", "X", YK_FLAG_REAL, AT(min_p), 0, 1,
     .help = "drop tokens below X times the best one's probability, 0: off (default: 0.05)"},
    {SAMPLE, "--typical, --typical-p", "X", YK_FLAG_REAL, AT(typical), 0, 1, .open_min = true,
     .help = "locally typical tokens of total probability X, 1: off (default: 1)"},
    {SAMPLE, "--repeat-penalty", "X", YK_FLAG_REAL, AT(repeat_penalty), 0, 100, .open_min = true,
     .help = "divide the logits of recent tokens, 1: off (default: 1)"},
    {SAMPLE, "--repeat-last-n", "N", YK_FLAG_INT, AT(repeat_last_n), -1, I31,
     .help = "recent tokens that penalties look at, 0: off, -1: the context (default: 64)"},
    {SAMPLE, "--frequency-penalty", "X", YK_FLAG_REAL, AT(frequency_penalty), -100, 100,
     .help = "taken off a recent token's logit for each time it came (default: 0)"},
    {SAMPLE, "--presence-penalty", "X", YK_FLAG_REAL, AT(presence_penalty), -100, 100,
     .help = "taken off a recent token's logit once (default: 0)"},
    {SAMPLE, "--ignore-eos", NULL, YK_FLAG_ON, AT(ignore_eos), .help = "go on behind tokens that end a text"},

    /* synth */
    {YK_CMD_SYNTH, "--shape", "NAME", YK_FLAG_TEXT, AT(shape), .help = "shape of the model; --list names them"},
    {YK_CMD_SYNTH, "--type", "NAME", YK_FLAG_TEXT, AT(type), .help = "type of the weights; --list names them"},
    {YK_CMD_SYNTH, "--layers", "N", YK_FLAG_INT, AT(layers), 1, 4096,
     .help = "cut the model to N layers (default: as the shape says)"},
    {YK_CMD_SYNTH, "-s, --seed", "N", YK_FLAG_INT, AT(seed), 0, 9007199254740992.0, .help = "seed of the weights (default: 1)"},
    {YK_CMD_SYNTH, "-o, --output", "FILE", YK_FLAG_TEXT, AT(output), .help = "file to write; it appears when it is complete"},
    {YK_CMD_SYNTH, "--list", NULL, YK_FLAG_ON, AT(list), .help = "print the names of shapes and types"},

    /* out */
    {YK_CMD_RUN, "--print-ids", NULL, YK_FLAG_ON, AT(print_ids), .help = "print the generated token ids instead of text"},
    {YK_CMD_RUN, "--logits", "FILE", YK_FLAG_TEXT, AT(logits),
     .help = "write each step's logits: f32, little endian, [step][n_vocab]"},
    {YK_CMD_RUN | YK_CMD_CHAT | YK_CMD_BENCH, "--trace", "FILE", YK_FLAG_TEXT, AT(trace),
     .help = "write a timeline of CPU, GPU and link (Chrome trace format)"},
    {YK_CMD_RUN | YK_CMD_CHAT | YK_CMD_BENCH, "--stats", NULL, YK_FLAG_ON, AT(stats),
     .help = "speed, bytes a token, hits, stalls, roofline and predicted times on stderr"},
    {YK_CMD_INSPECT, "--full", NULL, YK_FLAG_ON, AT(full), .help = "all elements of arrays and whole texts"},
    {YK_CMD_PROFILE, "-o, --output", "FILE", YK_FLAG_TEXT, AT(output),
     .help = "file to write, - for stdout (default: the one in the user's cache)"},
    {YK_CMD_PLAN, "--shape", "FILE", YK_FLAG_TEXT, AT(shape),
     .help = "plan for the shape of a model, without its weights (partition/shapes)"},
    {YK_CMD_PLAN, "--type", "NAME", YK_FLAG_TEXT, AT(type),
     .help = "with --shape: type of the weights (default: as the shape's file says)"},
    {YK_CMD_PLAN, "-o, --output", "FORMAT", YK_FLAG_CHOICE, AT(output), .choices = "text|json|svg",
     .help = "text, json or svg (default: text)"},
    {YK_CMD_INSPECT | YK_CMD_PERPLEXITY | YK_CMD_DEVICES, "-o, --output", "FORMAT", YK_FLAG_CHOICE, AT(output),
     .choices = "text|json", .help = "text or json (default: text)"},
    {YK_CMD_BENCH, "-o, --output", "FORMAT", YK_FLAG_CHOICE, AT(output), .choices = "md|csv|json",
     .help = "md, csv or json (default: md)"},
    {ALL, "-v, --verbose", NULL, YK_FLAG_COUNT, AT(verbose), .help = "say more on stderr; twice: everything"},
    {ALL, "-q, --quiet", NULL, YK_FLAG_ON, AT(quiet), .help = "only errors on stderr"},
    {ALL, "-h, --help", NULL, YK_FLAG_ON, AT(help), .help = "print this help"},
};

const yk_flag *yk_cli_flag(unsigned command, uint32_t index)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if ((table[i].commands & command) && index-- == 0)
            return &table[i];
    return NULL;
}

void yk_cli_opts_init(yk_cli_opts *opts, unsigned command)
{
    yk_sampler_opts sampler;
    yk_sampler_opts_init(&sampler);
    memset(opts, 0, sizeof *opts);
    opts->auto_partition = true;
    opts->n_predict = -1;
    opts->gpu_layers = -1;
    opts->seed = command == YK_CMD_SYNTH ? 1 : -1;
    opts->context = command == YK_CMD_PERPLEXITY ? 512 : 0;
    opts->batch = 2048;
    opts->cache_k = opts->cache_v = "f16";
    opts->policy = "static";
    opts->temperature = 0.8;
    opts->top_k = sampler.top_k;
    opts->top_p = 0.95;
    opts->min_p = 0.05;
    opts->typical = 1;
    opts->repeat_penalty = 1;
    opts->repeat_last_n = sampler.penalty_last_n;
    opts->chunks = -1;
    opts->repetitions = 5;
    opts->bench_prompt.value[0] = 512;
    opts->bench_gen.value[0] = 128;
    opts->bench_prompt.n = opts->bench_gen.n = opts->bench_depth.n = opts->bench_threads.n = 1;
    if (command != YK_CMD_SYNTH && command != YK_CMD_PROFILE)
        opts->output = command == YK_CMD_BENCH ? "md" : "text";
}
