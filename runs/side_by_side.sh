# Two commands side by side, each on half of the processor: two that both use all of it wait for one another. When one fails
# the other is stopped, and so is the script that sources this. Functions of the script are commands too.
#
#     source runs/side_by_side.sh
#     side_by_side language pixels
side_by_side() {
  local half=$(($(nproc) > 1 ? $(nproc) / 2 : 1)) one other each
  (export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$half}"; "$1") & one=$!
  (export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$half}"; "$2") & other=$!
  if ! wait -n || ! wait -n; then
    for each in "$one" "$other"; do
      pkill -P "$each" || true # what it is running
      kill "$each" 2> /dev/null || true
    done
    return 1
  fi
}
