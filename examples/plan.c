/* plan.c - what `yoke run --auto-partition --explain` does, by hand: measure the machine, plan, show the plan, generate a few tokens with it.
 *   plan MODEL.gguf [DEVICE [VRAM_BYTES]] */
#include <stdio.h>
#include <stdlib.h>

#include <yoke/yoke.h>

static int failed(const yk_error *err)
{
    fprintf(stderr, "plan: %s\n", err->text);
    return 1;
}

int main(int argc, char **argv)
{
    yk_error err = {0};
    yk_model *model = NULL;
    yk_machine *machine = NULL;
    yk_plan *plan = NULL;
    yk_engine *engine = NULL;
    yk_seq *seq = NULL;
    yk_machine_opts machine_opts;
    yk_engine_opts opts;
    char text[8192];
    if (argc < 2) {
        fprintf(stderr, "usage: plan MODEL.gguf [DEVICE [VRAM_BYTES]]\n");
        return 2;
    }
    yk_machine_opts_init(&machine_opts);
    yk_engine_opts_init(&opts);
    machine_opts.device = opts.device = argc > 2 ? argv[2] : NULL;
    opts.vram_budget_bytes = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    if (yk_model_open(&model, argv[1], NULL, &err) != YK_OK)
        return failed(&err);
    machine_opts.model = model;
    if (yk_machine_profile(&machine, &machine_opts, &err) != YK_OK ||
        yk_plan_make(&plan, machine, model, &opts, &err) != YK_OK ||
        yk_plan_explain(plan, model, machine, &opts, text, sizeof text, NULL, &err) != YK_OK)
        return failed(&err);
    puts(text);
    opts.plan = plan; /* without this line yk_engine_open measures (once, cached) and plans by itself */
    if (yk_engine_open(&engine, model, &opts, &err) != YK_OK || yk_seq_open(&seq, engine, &err) != YK_OK)
        return failed(&err);
    yk_model_info info;
    yk_model_get_info(model, &info);
    int32_t token = info.bos < 0 ? 0 : info.bos;
    for (int i = 0; i < 16; i++) {
        const yk_batch_entry entry = {seq, &token, 1, YK_LOGITS_LAST};
        if (yk_decode(engine, &entry, 1, &err) != YK_OK)
            return failed(&err);
        const float *logits = yk_logits(engine, 0, 0);
        token = 0;
        for (uint32_t k = 1; k < info.n_vocab; k++)
            token = logits[k] > logits[token] ? (int32_t)k : token;
        yk_token_text(model, token, false, text, sizeof text, NULL);
        fputs(text, stdout);
    }
    puts("");
    yk_seq_close(&seq);
    yk_engine_close(&engine);
    yk_plan_close(&plan);
    yk_machine_close(&machine);
    yk_model_close(&model);
    return 0;
}
