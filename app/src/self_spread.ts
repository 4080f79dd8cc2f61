/** How far the median of a model's ratios to itself lies from one by chance: evaluation/self_spread.py, line for line. */

/** 2^60: every double of a share is a whole number of these parts. */
const WHOLE = 2n ** 60n;

/**
 * The smallest size that at least a share of the medians does not exceed, over as many rounds as there are values, each
 * drawn from all, with a random sign. Computed with whole numbers, so that it equals Python's.
 */
export function selfSpread(values: readonly number[], quantile = 0.95): number {
  const draws = new Draws(values);
  const outside = (WHOLE - BigInt(quantile * Number(WHOLE))) * draws.ways;
  const reached = (twice: number) => 2n * WHOLE * draws.above(twice) <= outside;

  let sizes = draws.support.map((value) => 2 * value);
  let at = firstTrue(sizes, reached);
  if (values.length % 2 === 0 && at > 0) {
    // the median may lie between two values
    const low = sizes[at - 1] ?? 0;
    const high = sizes[at] ?? 0;
    const sums = draws.support.flatMap((a) => draws.support.map((b) => a + b));
    sizes = [...new Set(sums.filter((sum) => low < sum && sum <= high))].sort((a, b) => a - b);
    at = firstTrue(sizes, reached);
  }
  return Math.abs((sizes[at] ?? 0) / 2);
}

/** The first index where a condition holds that never ceases to hold once it does. */
function firstTrue(sizes: readonly number[], condition: (size: number) => boolean): number {
  let low = 0;
  let high = sizes.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (condition(sizes[middle] ?? 0)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** As many draws as there are values, each of any value with either sign; counted in equally likely ways. */
class Draws {
  readonly support: number[];
  readonly ways: bigint;
  private readonly n: number;
  /** How many of the 2n signed values are among the lowest distinct ones. */
  private readonly upTo: bigint[] = [0n];

  constructor(values: readonly number[]) {
    this.n = values.length;
    this.ways = BigInt(2 * this.n) ** BigInt(this.n);
    const counts = new Map<number, number>(); // a Map takes 0 and -0 for one key
    for (const value of values) {
      for (const signed of [value, -value]) counts.set(signed, (counts.get(signed) ?? 0) + 1);
    }
    this.support = [...counts.keys()].sort((a, b) => a - b);
    let sum = 0;
    for (const value of this.support) {
      sum += counts.get(value) ?? 0;
      this.upTo.push(BigInt(sum));
    }
  }

  /** In how many ways the median is above half of a number. */
  above(twice: number): bigint {
    const half = this.n >> 1;
    const middle = this.support.filter((value) => 2 * value <= twice).length;
    if (this.n % 2) return this.atMost(half, middle);
    // Either the lower of the two middle draws is above the size, or half of all draws are at most the lower one, and
    // the other half so large that their sum with it is above twice the size.
    let found = 0n;
    let reach = this.support.length;
    for (let index = 0; index < middle; index++) {
      const value = this.support[index] ?? 0;
      while (reach > index && value + (this.support[reach - 1] ?? 0) > twice) reach--;
      const lower = this.lowest(index + 1) ** BigInt(half) - this.lowest(index) ** BigInt(half);
      found += lower * (BigInt(2 * this.n) - this.lowest(reach)) ** BigInt(half);
    }
    return this.atMost(half - 1, middle) + combinations(this.n, half) * found;
  }

  /** In how many ways at most some draws are among the lowest distinct values. */
  private atMost(most: number, number: number): bigint {
    const inside = this.lowest(number);
    const outside = BigInt(2 * this.n) - inside;
    let ways = 0n;
    for (let k = 0; k <= most; k++) {
      ways += combinations(this.n, k) * inside ** BigInt(k) * outside ** BigInt(this.n - k);
    }
    return ways;
  }

  private lowest(number: number): bigint {
    return this.upTo[number] ?? 0n;
  }
}

function combinations(n: number, k: number): bigint {
  let ways = 1n;
  for (let i = 1; i <= k; i++) ways = (ways * BigInt(n - i + 1)) / BigInt(i);
  return ways;
}
