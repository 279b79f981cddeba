/* constraints.h - what a user's flags leave the solver to choose, layer by layer. */
#ifndef YK_PARTITION_CONSTRAINTS_H
#define YK_PARTITION_CONSTRAINTS_H

#include "partition/plan.h"

/* Sides, as bits. */
enum { YK_ON_HOST = 1, YK_ON_DEVICE = 2, YK_ON_BOTH = 3 };

/* Who asked, from the weakest to the strongest. index: of the override or fixed slice. */
typedef enum yk_asker { YK_ASK_NOBODY, YK_ASK_NGL, YK_ASK_NKVO, YK_ASK_NCMOE, YK_ASK_OT, YK_ASK_FIXED } yk_asker;
typedef struct yk_asked {
    uint8_t who, sides; /* yk_asker; where it may be */
    uint16_t index;
} yk_asked;

/* A layer's part that is cut: of its n units (experts: instances) so many must be resident at least, may be at most. */
typedef struct yk_layer_rule {
    yk_asked attn, shared, main;
    uint32_t least, most;
} yk_layer_rule;

typedef struct yk_rules {
    const yk_shape *shape;
    const yk_plan_wishes *wishes;
    yk_layer_rule *layers; /* [n_layers] */
    yk_asked head;
    bool any;                    /* something is asked */
    bool device_wanted;          /* something must be on a device */
    yk_asked by;                 /* who wants it first */
    char device[YK_DEVICE_NAME]; /* the device named; "": any */
    char gave_way[200];          /* "-ngl 33 gives way to -ncmoe 8 (experts of layer 0 and 7 more)"; "" nothing did */
    uint32_t n_gave_way;
} yk_rules;

/* YK_ERR_USAGE: wishes that contradict each other, or that cannot be, with the flag that lost. YK_ERR_MEMORY. Closed with
 * yk_rules_close, also after a failure. */
yk_status yk_rules_make(yk_rules *out, const yk_shape *shape, const yk_plan_limits *limits, yk_error *err);
void yk_rules_close(yk_rules *rules);

/* "-ngl 33", "-ot exps=CPU", "fixed[2]". */
void yk_rules_flag(const yk_rules *rules, yk_asked asked, char out[160]);

/* Side a unit of a layer's main part is fixed to; YK_ON_BOTH: free. */
int yk_rules_unit(const yk_rules *rules, uint32_t layer, yk_part_group main, uint32_t unit);

/* The part of a layer whose units the solver shares out: the experts, or the dense FFN. */
static inline yk_part_group yk_main_part(const yk_shape_layer *layer)
{
    return layer->part[YK_PART_EXP].n ? YK_PART_EXP : YK_PART_FFN;
}
static inline uint32_t yk_main_units(const yk_shape_layer *layer)
{
    return layer->part[YK_PART_EXP].n ? layer->part[YK_PART_EXP].n : layer->part[YK_PART_FFN].cut.n;
}

#endif
