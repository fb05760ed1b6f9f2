// The official facilitator (`@x402/core` and `@x402/evm` from npm, unchanged) behind three HTTP endpoints.
//
//   node driver.mjs PACKAGE_DIRECTORY RPC_URL PRIVATE_KEY
//
// The packages are those of PACKAGE_DIRECTORY. One line on stdout, {"port"}, says where it listens; it ends with stdin.

import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";

const [directory, rpc, key] = process.argv.slice(2);
const load = createRequire(join(directory, "package.json"));
const { x402Facilitator } = load("@x402/core/facilitator");
const { toFacilitatorEvmSigner } = load("@x402/evm");
const { BatchSettlementEvmScheme } = load("@x402/evm/batch-settlement/facilitator");
const { createWalletClient, http, publicActions } = load("viem");
const { nonceManager, privateKeyToAccount } = load("viem/accounts");
const { baseSepolia } = load("viem/chains");

const account = privateKeyToAccount(key, { nonceManager });
const wallet = createWalletClient({
  account,
  chain: baseSepolia,
  transport: http(rpc, { retryCount: 0 }),
  pollingInterval: 20,
}).extend(publicActions);
const signer = toFacilitatorEvmSigner({
  address: account.address,
  readContract: request => wallet.readContract(request),
  verifyTypedData: request => wallet.verifyTypedData(request),
  writeContract: request => wallet.writeContract(request),
  sendTransaction: request => wallet.sendTransaction(request),
  waitForTransactionReceipt: request => wallet.waitForTransactionReceipt(request),
  getCode: request => wallet.getCode(request),
});
const facilitator = new x402Facilitator().register(
  `eip155:${baseSepolia.id}`,
  new BatchSettlementEvmScheme(signer),
);

const endpoints = {
  "GET /supported": () => facilitator.getSupported(),
  "POST /verify": ({ paymentPayload, paymentRequirements }) => facilitator.verify(paymentPayload, paymentRequirements),
  "POST /settle": ({ paymentPayload, paymentRequirements }) => facilitator.settle(paymentPayload, paymentRequirements),
};

async function text(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

async function answer(request) {
  const endpoint = endpoints[`${request.method} ${request.url}`];
  if (endpoint === undefined) return [404, { error: "not found" }];
  try {
    const body = await text(request);
    return [200, await endpoint(body === "" ? undefined : JSON.parse(body))];
  } catch (error) {
    return [500, { error: String(error?.message ?? error) }];
  }
}

const server = createServer(async (request, response) => {
  const [status, body] = await answer(request);
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
});
server.listen(0, "127.0.0.1", () => process.stdout.write(`${JSON.stringify({ port: server.address().port })}\n`));
process.stdin.resume().on("end", () => process.exit(0));
