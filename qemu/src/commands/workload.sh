end=$(($(date +%s) + @SECONDS@))
# /tmp is a tmpfs: every file is memory.
mkdir -p /tmp/work
cd /tmp/work || exit 1
round=0
while [ "$(date +%s)" -lt "$end" ]; do
    round=$((round + 1))
    # Large writes, and a checksum that must come out the same.
    dd if=/dev/urandom of=big bs=64k count=256 2>/dev/null
    first=$(sha256sum <big)
    cp big copy
    [ "$(sha256sum <copy)" = "$first" ] || exit 2
    # Sorting: memory that is written in no order.
    od -An -v -tu4 -w4 -N200000 big | sort >sorted
    sort -c sorted || exit 3
    # Many processes, many at once.
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
        (x=$n; : "$(echo "$x" | cat)") &
    done
    wait
    # Small files that come and go, as in a compilation.
    mkdir -p tree
    for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        dd if=big of=tree/$n.o bs=4k count=$n 2>/dev/null
    done
    cat tree/*.o | gzip -1 >tree/all.gz
    rm -rf tree
done
echo "$round rounds of work"
