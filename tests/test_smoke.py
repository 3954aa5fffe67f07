import arcp_trio
from helpers import Script, open_raw, terminals


async def test_raw(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 5)
        frame = await client.receive_until("job.result")
        assert frame["payload"]["result"] == 5
        await client.settle()
        assert len(terminals(client.received, job_id)) == 1
