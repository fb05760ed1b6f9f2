// Compiles src/*.sol into artifacts/<Name>.json, or with --check proves that the committed artifacts are what the
// sources compile to. The compiler is pinned in package.json, and no metadata hash goes into the code, so the output
// does not depend on the machine.

import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const root = dirname(fileURLToPath(import.meta.url));
const contracts = [
  "X402BatchSettlement",
  "ERC3009DepositCollector",
  "Permit2",
  "Permit2DepositCollector",
  "TestDollar",
  "PlainDollar",
  "TestWallet",
  "Multicall3",
];

const sources = Object.fromEntries(
  readdirSync(join(root, "src"))
    .filter((file) => file.endsWith(".sol"))
    .sort()
    .map((file) => [file, { content: readFileSync(join(root, "src", file), "utf8").replaceAll("\r\n", "\n") }]),
);

const output = JSON.parse(
  solc.compile(
    JSON.stringify({
      language: "Solidity",
      sources,
      settings: {
        evmVersion: "cancun",
        viaIR: true,
        optimizer: { enabled: true, runs: 1000 },
        metadata: { bytecodeHash: "none", appendCBOR: false },
        outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode"] } },
      },
    }),
  ),
);

// 2394: a reminder that transient storage is new. The guard that uses it is cleared on every way out.
const findings = (output.errors ?? []).filter((finding) => finding.errorCode !== "2394");
for (const finding of findings) console.error(finding.formattedMessage);
if (findings.length > 0) {
  console.error("The contracts do not compile cleanly.");
  process.exit(1);
}

const checking = process.argv.includes("--check");
let stale = 0;
mkdirSync(join(root, "artifacts"), { recursive: true });
for (const name of contracts) {
  const { abi, evm } = output.contracts[`${name}.sol`][name];
  const immutables = Object.keys(evm.deployedBytecode.immutableReferences ?? {});
  if (immutables.length > 0) {
    console.error(`${name} has immutables: its runtime code cannot be installed with setCode.`);
    process.exit(1);
  }
  const artifact = {
    contractName: name,
    abi,
    bytecode: `0x${evm.bytecode.object}`,
    deployedBytecode: `0x${evm.deployedBytecode.object}`,
  };
  const text = `${JSON.stringify(artifact, null, 1)}\n`;
  const path = join(root, "artifacts", `${name}.json`);
  if (!checking) {
    writeFileSync(path, text);
    continue;
  }
  const committed = existsSync(path) ? readFileSync(path, "utf8").replaceAll("\r\n", "\n") : "";
  if (committed !== text) {
    console.error(`artifacts/${name}.json is not what src/${name}.sol compiles to. Run: node build.mjs`);
    stale += 1;
  }
}
if (stale > 0) process.exit(1);
console.log(checking ? `${contracts.length} artifacts match their sources.` : `Wrote ${contracts.length} artifacts.`);
