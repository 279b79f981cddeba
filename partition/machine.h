/* machine.h - what a machine can do, as measured or as stated by a file of partition/machines. Plain data; JSON in and out.
 *
 * Rates are of weights as they lie in memory. "product at n tokens": bytes of a weight matrix divided by the seconds its
 * product with n activations takes, so 1 / rate falls when more tokens make it slower; for the bucket "prefill" the rate is
 * bytes times tokens per second.
 *
 * What a file leaves out is replaced by these rules (yk_lane_resolve); 0 in the struct means "left out" (of a device's times: -1):
 *   a token bucket       the time of the next smaller bucket, scaled by the ratio of tokens (no gain from batching is assumed)
 *   a weight type        the rates of the measured type with the nearest bits per weight, the lower type number of two equally near
 *   device: read         the highest product rate at one token
 *   attention_flops      (of CPU and devices) two operations per weight of the prefill rate of the fastest type
 *   link to host         as link to device
 *   overlap              together at most the read rate, each is sure of half; what copies cost the CPU goes with their bytes (pair.h)
 *   hand_off, launch, latencies, fixed cost   on a device 20, 5, 10, 10 us; the fixed cost of the CPU: 0
 *   prompt (by type)     the token buckets, and the prefill rate beyond the last
 *   down (by type)       as rows; of 2 units: as of 8
 *   attention_by_head    of K and V: read; of operations: attention_flops
 *   stage, row           they cost nothing
 * The fits say how the rates were found and how sure they are; nothing has to be there. docs/PROFILER.md lists the keys of the file. */
#ifndef YK_PARTITION_MACHINE_H
#define YK_PARTITION_MACHINE_H

#include "src/model/types.h"
#include "yoke/yoke.h"

enum { YK_MACHINE_FORMAT = 1, YK_MAX_DEVICES = 8, YK_DEVICE_NAME = 24 };

/* Token buckets of plans and rates, with the names files use. */
typedef enum yk_bucket { YK_B_1, YK_B_4, YK_B_8, YK_B_16, YK_B_32, YK_B_PREFILL, YK_N_BUCKETS } yk_bucket;
const char *yk_bucket_name(yk_bucket b);       /* "1", "2-4", "5-8", "9-16", "17-32", "prefill" */
yk_bucket yk_bucket_by_name(const char *name); /* YK_N_BUCKETS: unknown */
/* Bucket of n tokens; more than 32: prefill. Largest number of tokens of a bucket but prefill. */
yk_bucket yk_bucket_of(uint32_t n_tokens);
uint32_t yk_bucket_tokens(yk_bucket b);

/* The line t = ns + x / per_s through measured times. per_s 0: not measured. */
typedef struct yk_fit {
    double ns, per_s;
    double best_per_s; /* x / t of the best decile of the times of the largest x */
    double spread;     /* of the times of one x: 1.48 median absolute deviations, as a share of the median */
} yk_fit;

/* Numbers of tokens that products are measured at. */
enum { YK_FIT_TOKENS = 9 };
uint32_t yk_fit_tokens(uint32_t i); /* 1 4 8 16 32 64 128 256 512 */

/* Numbers of tokens that products inside a prompt are measured at: experts have few of its tokens. Steps of many tokens are cut in other slices than
 * short ones, so these rates differ from those of the token buckets. Kernels take tokens in groups of 8 or 16, and an expert's number is any: 26 and
 * 122 lie as far from the next whole group as numbers do on average. The CPU multiplies YK_PROMPT_TILE tokens at a time. */
enum { YK_PROMPT_POINTS = 5, YK_PROMPT_TILE = 128 };
uint32_t yk_prompt_tokens(uint32_t i); /* 8 26 64 122 512 */

/* Down is multiplied by columns of tiles, which is slower than rows, and the slower the fewer cut units an FFN has: experts are narrow. Measured
 * at so many tokens, with FFNs of so many cut units. */
enum { YK_DOWN_POINTS = 4 };
uint32_t yk_down_tokens(uint32_t i); /* 1 512 1 512 */
uint32_t yk_down_units(uint32_t i);  /* 8 8 2 2 */

/* Dimensions of the heads that attention is measured with; others count as the nearest. */
enum { YK_HEAD_DIMS = 2 };
uint32_t yk_head_dim(uint32_t i); /* 64 128 */

/* Memory read by a number of threads, from pages of one size. */
typedef struct yk_read_rate {
    uint32_t threads, node; /* node YK_ALL_NODES: of all nodes; else threads and memory of that one */
    uint64_t page_bytes;
    yk_fit fit; /* ns 0 */
} yk_read_rate;
enum { YK_MAX_READS = 64 };
#define YK_ALL_NODES UINT32_MAX

/* Product rates by weight type; [t][YK_B_PREFILL] in byte-tokens/s, the others in bytes/s. */
typedef struct yk_rates {
    double product[YK_TYPE_LIMIT][YK_N_BUCKETS];
    double read_bytes_per_s;
    double fixed_ns;                                /* of one product, whatever its size (device: beside the launch) */
    double attention_flops_per_s;                   /* of prefill attention */
    double prompt[YK_TYPE_LIMIT][YK_PROMPT_POINTS]; /* bytes/s of products in prompts */
    double down[YK_TYPE_LIMIT][YK_DOWN_POINTS];     /* bytes/s of down; product and prompt are of rows */
    double head_kv_bytes_per_s[YK_HEAD_DIMS], head_flops_per_s[YK_HEAD_DIMS]; /* attention of one token, of a prompt */
    double stage_ns;        /* of a stage between products, with next to nothing to do */
    double row_bytes_per_s; /* rows of activations (f32) that such stages gather, add, norm and round */
    yk_fit product_fit[YK_TYPE_LIMIT][YK_FIT_TOKENS]; /* x: bytes of weights */
    yk_fit attention_fit;                             /* of one token; x: bytes of K and V */
} yk_rates;

/* Copies of page-locked memory, and of other. */
enum { YK_LINK_TO_DEVICE, YK_LINK_TO_HOST, YK_LINK_PAGEABLE_TO_DEVICE, YK_LINK_PAGEABLE_TO_HOST, YK_LINK_FITS };

typedef struct yk_machine_device {
    char name[YK_DEVICE_NAME]; /* "opencl:0": home of slices in a plan */
    char backend[16], description[128], driver[128];
    uint64_t memory_bytes;
    bool same_silicon;  /* this is the CPU under another name: never chosen unless asked for */
    bool shared_memory; /* integrated: its memory is the host's */
    yk_rates rates;
    double launch_ns; /* of one kernel */
    double to_device_bytes_per_s, to_device_ns, to_host_bytes_per_s, to_host_ns;
    double hand_off_ns; /* device to host and back through the mailbox, without the data */
    /* Both at once: what the CPU's products read and what the link carries. */
    double overlap_cpu_bytes_per_s, overlap_to_device_bytes_per_s;
    double overlap_device_bytes_per_s;                           /* its own products at one token, while both go on */
    double both_to_device_bytes_per_s, both_to_host_bytes_per_s; /* copies both ways at once */
    double hand_off_p99_ns;
    yk_fit link_fit[YK_LINK_FITS], copy_fit; /* x: bytes; copy: within the device */
} yk_machine_device;

struct yk_machine {
    /* identity; "" when not told */
    char host[128], build[128], time[64], source[512]; /* source: where figures that were not measured come from */
    bool noisy;                                        /* the measurements did not settle */
    char cpu[128], isa[128];
    uint32_t threads;      /* workers the rates were measured with */
    uint64_t memory_bytes; /* RAM */
    char noisy_items[512]; /* which measurements did not settle, with their spread; "" when none or not told */
    yk_rates rates;
    uint32_t n_reads;
    yk_read_rate reads[YK_MAX_READS];
    uint32_t n_devices;
    yk_machine_device devices[YK_MAX_DEVICES];
};
typedef struct yk_machine yk_machine;

/* Read a machine from the text of a file. YK_ERR_INPUT names the key: "machine.devices[0].link.to_device_bytes_per_s: ...".
 * *out is as it was on failure. */
yk_status yk_machine_read(yk_machine *out, const char *text, size_t n_bytes, yk_error *err);
/* The text of a file, from yk_alloc. Reading and writing it again gives the same bytes. */
yk_status yk_machine_write(const yk_machine *machine, char **out, size_t *n_bytes, yk_error *err);

/* Seconds per byte of a product over its tokens: straight lines between n points, in proportion to tokens beyond them. */
typedef struct yk_curve {
    uint32_t n;
    double tokens[YK_B_PREFILL + YK_PROMPT_POINTS], s_per_byte[YK_B_PREFILL + YK_PROMPT_POINTS];
} yk_curve;

/* Rates with every hole filled by the rules above: seconds per byte (prefill: per byte and token), rising with the bucket. */
typedef struct yk_lane {
    double s_per_byte[YK_TYPE_LIMIT][YK_N_BUCKETS];
    double read_s_per_byte, fixed_s, attention_s_per_flop;
    yk_curve prompt[YK_TYPE_LIMIT]; /* n 0: not measured */
    double down_factor[YK_TYPE_LIMIT]
                      [YK_DOWN_POINTS]; /* down takes so many times as long as rows: decode, prompts; 8 units, 2 */
    double head_kv_s_per_byte[YK_HEAD_DIMS], head_s_per_flop[YK_HEAD_DIMS];
    double stage_s, row_s_per_byte;
} yk_lane;
void yk_lane_resolve(yk_lane *lane, const yk_rates *rates, bool is_device);
double yk_curve_at(const yk_curve *curve, double tokens);
/* The same in a prompt, by whole tiles of YK_PROMPT_TILE tokens and the rest. */
double yk_curve_tiled(const yk_curve *curve, double tokens);
/* Down of an FFN of so many cut units takes so many times as long as rows. The cost of an FFN's rows of results is beside that of its
 * columns, so between 8 and 2 units, and to 1, straight in 1 / units. */
double yk_lane_down(const yk_lane *lane, yk_type type, bool prefill, uint32_t units);
/* Index of the measured head nearest to one of so many dimensions. */
uint32_t yk_head_of(uint32_t head_dim);

/* Device by "opencl:0", or "opencl" for the first of a backend; -1 when there is none. */
int yk_machine_find(const yk_machine *machine, const char *name);

#endif
