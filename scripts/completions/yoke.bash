# bash completion for yoke; tests/cli/test_flags.py compares the lists with `yoke COMMAND --help`

_yoke_flags()
{
    case $1 in
    run) echo "-m --model --check-tensors -p --prompt -f --file --ids -e --escape -n --predict --n-predict -c --ctx-size \
        -t --threads -b --batch-size -ub --ubatch-size -ctk --cache-type-k -ctv --cache-type-v -dev --device \
        --vram-budget -ngl --gpu-layers --n-gpu-layers -ncmoe --n-cpu-moe -nkvo --no-kv-offload -ot --override-tensor --auto-partition --no-auto-partition --machine --plan --policy --explain --no-repack --pack-cache --isa -s --seed --temp --temperature --top-k --top-p --min-p \
        --typical --typical-p --repeat-penalty --repeat-last-n --frequency-penalty --presence-penalty --ignore-eos \
        --print-ids --logits --trace --stats -v --verbose -q --quiet -h --help" ;;
    chat) echo "-m --model --check-tensors -sys --system-prompt -e --escape -n --predict --n-predict -c --ctx-size -t \
        --threads -b --batch-size -ub --ubatch-size -ctk --cache-type-k -ctv --cache-type-v -dev --device --vram-budget -ngl --gpu-layers --n-gpu-layers -ncmoe --n-cpu-moe -nkvo --no-kv-offload -ot --override-tensor \
        --auto-partition --no-auto-partition --machine --plan --policy --explain --no-repack --pack-cache --isa -s --seed --temp --temperature --top-k --top-p --min-p --typical \
        --typical-p --repeat-penalty --repeat-last-n --frequency-penalty --presence-penalty --ignore-eos --trace --stats -v --verbose \
        -q --quiet -h --help" ;;
    inspect) echo "-m --model --check-tensors --vocab-only --full -o --output -v --verbose -q --quiet -h --help" ;;
    tokenize) echo "-m --model -p --prompt -f --file -e --escape --no-special --no-parse-special -v --verbose -q --quiet \
        -h --help" ;;
    perplexity) echo "-m --model --check-tensors -f --file -c --ctx-size --chunks -t --threads -b --batch-size -ub \
        --ubatch-size -ctk --cache-type-k -ctv --cache-type-v -dev --device --vram-budget -ngl --gpu-layers --n-gpu-layers -ncmoe --n-cpu-moe -nkvo --no-kv-offload -ot --override-tensor --auto-partition \
        --no-auto-partition --machine --plan --policy --explain --no-repack --pack-cache --isa -o --output -v --verbose -q --quiet -h --help" ;;
    bench) echo "-m --model --check-tensors -p --n-prompt -n --n-gen -pg -d --n-depth -t --threads -r --repetitions -b \
        --batch-size -ub --ubatch-size -ctk --cache-type-k -ctv --cache-type-v -dev --device --vram-budget -ngl --gpu-layers --n-gpu-layers -ncmoe --n-cpu-moe -nkvo --no-kv-offload -ot --override-tensor \
        --auto-partition --no-auto-partition --machine --plan --policy --explain --no-repack --pack-cache --isa -o --output --trace --stats -v --verbose -q --quiet -h --help" ;;
    profile) echo "-m --model -t --threads -dev --device --quick --isa -o --output -v --verbose -q --quiet -h --help" ;;
    plan) echo "-m --model -c --ctx-size -t --threads -b --batch-size -ub --ubatch-size -ctk --cache-type-k -ctv --cache-type-v \
        -dev --device --vram-budget -ngl --gpu-layers --n-gpu-layers -ncmoe --n-cpu-moe -nkvo --no-kv-offload -ot --override-tensor --auto-partition --no-auto-partition --machine --policy --isa --shape --type -o --output -v --verbose -q --quiet \
        -h --help" ;;
    devices) echo "-o --output -v --verbose -q --quiet -h --help" ;;
    synth) echo "--shape --type --layers -s --seed -o --output --list -v --verbose -q --quiet -h --help" ;;
    esac
}

_yoke()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]} words=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        words="run chat inspect tokenize perplexity bench profile plan devices synth help --help --version"
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
        return
    fi
    case $command:$prev in
    *:-m | *:--model)
        mapfile -t COMPREPLY < <(compgen -f -X '!*.gguf' -- "$cur"; compgen -d -S / -- "$cur")
        return ;;
    *:-f | *:--file | *:--machine | *:--plan | profile:-o | profile:--output | *:--trace | run:--logits | synth:-o | synth:--output)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return ;;
    *:--pack-cache)
        mapfile -t COMPREPLY < <(compgen -d -S / -- "$cur")
        return ;;
    bench:-o | bench:--output) words="md csv json" ;;
    *:-o | *:--output) words="text json" ;;
    *:--policy) words="static adaptive" ;;
    *:-ctk | *:--cache-type-k | *:-ctv | *:--cache-type-v) words="f16 f32" ;;
    *:-dev | *:--device) words="auto cpu $("${COMP_WORDS[0]}" devices 2>/dev/null | sed -n 's/^\([a-z]*:[0-9]*\) .*/\1/p')" ;;
    synth:--shape | synth:--type) words=$("${COMP_WORDS[0]}" synth --list 2>/dev/null | sed -n 's/^  //p') ;;
    help:help) words="run chat inspect tokenize perplexity bench profile plan devices synth" ;;
    *)
        if [[ $cur == -* ]]; then
            words=$(_yoke_flags "$command")
        else
            mapfile -t COMPREPLY < <(compgen -f -X '!*.gguf' -- "$cur"; compgen -d -S / -- "$cur")
            return
        fi ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -o filenames -F _yoke yoke
